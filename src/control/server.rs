//! The control socket: bound with care, served with limits.
//!
//! Whoever may write to the socket's file may use it: root and the group `twinlog`.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::Group;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::Request;
use super::answer::Face;
use super::serve;
use crate::status::Observed;

/// Clients at a time; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 64;
/// Who may use the socket beside root.
const GROUP: &str = "twinlog";
/// Rest after `accept` failed, usually for want of file descriptors.
const ACCEPT_REST: Duration = Duration::from_millis(200);

/// Binds the socket at `path`, in a directory that is made if it is missing. Removes a socket that a dead daemon left;
/// mode 0660.
///
/// # Errors
/// [`io::ErrorKind::AddrInUse`] if a daemon answers there; [`io::ErrorKind::AlreadyExists`] if something else than a
/// socket is there; else what the system says.
///
/// # Panics
/// Outside of a tokio runtime.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::create_dir_all(parent)?;
    }
    remove_stale(path)?;
    let listener = UnixListener::bind(path)?;
    // Until here the umask decides, which never gives others the right to write, and that is the right to connect.
    fs::set_permissions(path, Permissions::from_mode(0o660))?;
    if let Ok(Some(group)) = Group::from_name(GROUP) {
        // Only root and members may; for anyone else the own group has to do.
        let _ = chown(path, None, Some(group.gid.as_raw()));
    }
    Ok(listener)
}

fn remove_stale(path: &Path) -> io::Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        metadata => metadata?,
    };
    if !metadata.file_type().is_socket() {
        let message = format!("{} is there and is no socket", path.display());
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(_) => {
            let message = format!("another twinlog answers on {}", path.display());
            Err(io::Error::new(io::ErrorKind::AddrInUse, message))
        }
    }
}

/// Serves until it is dropped; dropping it ends its connections.
pub async fn serve(listener: UnixListener, observed: Arc<Observed>, requests: mpsc::Sender<Request>) {
    let face = Arc::new(Face::control(observed, requests));
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let permit = room.clone().acquire_owned().await.expect("nobody closes the semaphore");
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((stream, _)) => {
                let (face, who) = (face.clone(), who(&stream));
                connections.spawn(async move {
                    serve::connection(stream, face, who, None).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept on the control socket");
                tokio::time::sleep(ACCEPT_REST).await;
            }
        }
    }
}

/// The client as the log names it: what the kernel says about its process.
fn who(stream: &UnixStream) -> String {
    match stream.peer_cred() {
        Ok(cred) => match cred.pid() {
            Some(pid) => format!("uid {} pid {pid}", cred.uid()),
            None => format!("uid {}", cred.uid()),
        },
        Err(_) => "unknown".to_owned(),
    }
}
