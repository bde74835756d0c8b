//! The handshake of forward, both sides: whatever comes, nobody gets in who does not know the key.

use twinlog::proto::forward::ack::read_ack;
use twinlog::proto::forward::handshake::{Client, Credentials, Security, Server, User};

/// One input: a message for either side.
pub fn run(message: &[u8]) {
    let security = |users| Security { self_hostname: "server".to_owned(), shared_key: b"a long key".to_vec(), users };
    let users = vec![User { name: "ada".to_owned(), password: b"lovelace".to_vec() }];
    for security in [security(Vec::new()), security(users)] {
        let verdict = Server::new(&security, [7; 32]).handle_ping(&security, message);
        assert!(verdict.outcome.is_err(), "nobody can have made that digest");
        assert!(verdict.reply.starts_with(b"\x95\xa4PONG\xc2") && verdict.reply.len() < 512);
    }
    let client =
        |user| Client::new(Credentials { self_hostname: "c".to_owned(), shared_key: b"k".to_vec(), user }, [3; 16]);
    let user = User { name: "ada".to_owned(), password: b"p".to_vec() };
    if let Ok((ping, waiting)) = client(Some(user)).handle_helo(message) {
        assert!(ping.starts_with(b"\x96\xa4PING"));
        assert!(waiting.handle_pong(message).is_err());
    }
    let server = Server::new(&security(Vec::new()), [7; 32]);
    let (_, waiting) = client(None).handle_helo(&server.helo()).expect("a server's own HELO");
    assert!(waiting.handle_pong(message).is_err(), "nobody can have made that digest");
    let _ = read_ack(message);
}
