//! keepalived on a host.

use tempfile::TempDir;

use super::{Host, Program};

/// A keepalived with one virtual router on a host, and its files. `instance` are lines of its `vrrp_instance`.
#[track_caller]
pub fn keepalived(host: &Host, instance: &str, version: u8) -> (Program, TempDir) {
    let directory = TempDir::with_prefix("twinlog-").unwrap();
    let file = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let text = format!(
        "global_defs {{ vrrp_version {version} }}\n\
         vrrp_instance one {{ interface eth0\n virtual_router_id 77\n {instance} }}\n"
    );
    std::fs::write(file("keepalived.conf"), text).unwrap();
    let arguments =
        ["-n", "-l", "-D", "-P", "-f", &file("keepalived.conf"), "-p", &file("pid"), "-r", &file("vrrp.pid")];
    (host.start("keepalived", arguments), directory)
}
