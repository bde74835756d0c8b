//! rsyslog's configuration.

use std::path::Path;

use super::ports::Ports;

/// rsyslog, tuned by a few short and noisy runs on a shared machine: imtcp was faster than imptcp each time, one queue
/// worker than two in the only comparison; batches of 4096 made no difference beyond the noise. Untried: rulesets with own
/// queues. It parses each message, as it always does, and is spared the names of its senders, of which there may be
/// thousands. The disk queue is the main queue's and is not synced.
pub fn config(dir: &Path, Ports { input, sink, .. }: Ports, queue: &str) -> String {
    let dir = dir.display();
    format!(
        r#"global(workDirectory="{dir}" processInternalMessages="off" net.enableDNS="off")
module(load="imtcp" maxSessions="20000")
module(load="imudp" batchSize="128")
main_queue({queue} queue.dequeueBatchSize="1024" queue.workerThreads="1")
template(name="raw" type="string" string="%rawmsg%\n")
input(type="imudp" address="127.0.0.1" port="{input}" rcvbufSize="64m")
input(type="imtcp" address="127.0.0.1" port="{input}")
action(type="omfwd" target="127.0.0.1" port="{sink}" protocol="tcp" template="raw"
       action.resumeRetryCount="-1" action.resumeInterval="1")
"#
    )
}
