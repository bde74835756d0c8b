//! The admin listener: the same answers as the control socket, over TCP, for Prometheus, load balancers and a browser.
//!
//! Read-only and without passwords: it shows numbers and names, never messages, and changes nothing. So it has no
//! `/tail` and no `/reload`. The page at `/` is three small files that ask for `/status.json` every other second.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::control::answer::Face;
use crate::control::serve;
use crate::status::Observed;

/// Clients at a time; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 128;
/// Clients at a time from one address; more are closed at once, so that one cannot keep the others out.
const CONNECTIONS_OF_ONE_MAX: usize = 16;
/// A connection is closed after so long whatever it does: no answer takes longer, and a client can connect again.
const LIFETIME: Duration = Duration::from_secs(60);
/// Rest after `accept` failed, usually for want of file descriptors.
const ACCEPT_REST: Duration = Duration::from_millis(200);

const FILES: &[(&str, &str, &str)] = &[
    ("/", "text/html; charset=utf-8", include_str!("admin/page.html")),
    ("/page.css", "text/css; charset=utf-8", include_str!("admin/page.css")),
    ("/page.js", "text/javascript; charset=utf-8", include_str!("admin/page.js")),
];

/// Serves until it is dropped; dropping it ends its connections.
pub async fn serve(listener: TcpListener, observed: Arc<Observed>) {
    let face = Arc::new(Face::read_only(observed, FILES));
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let guests = Arc::new(Guests::default());
    let mut connections = JoinSet::new();
    loop {
        let permit = room.clone().acquire_owned().await.expect("nobody closes the semaphore");
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((stream, address)) => {
                let Some(guest) = guests.clone().welcome(address.ip().to_canonical()) else { continue };
                let face = face.clone();
                connections.spawn(async move {
                    serve::connection(stream, face, address.to_string(), Some(LIFETIME)).await;
                    drop((permit, guest));
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept on the admin listener");
                tokio::time::sleep(ACCEPT_REST).await;
            }
        }
    }
}

/// Connections by address.
#[derive(Default)]
struct Guests(Mutex<HashMap<IpAddr, usize>>);

impl Guests {
    /// Counts one more, unless it would be too many.
    fn welcome(self: Arc<Guests>, ip: IpAddr) -> Option<Guest> {
        let mut guests = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = guests.entry(ip).or_default();
        if *count >= CONNECTIONS_OF_ONE_MAX {
            return None;
        }
        *count += 1;
        drop(guests);
        Some(Guest { guests: self, ip })
    }
}

/// One connection; leaves when it is dropped.
struct Guest {
    guests: Arc<Guests>,
    ip: IpAddr,
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut guests = self.guests.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = guests.get_mut(&self.ip) {
            *count -= 1;
            if *count == 0 {
                guests.remove(&self.ip);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_cannot_keep_the_others_out() {
        let guests = Arc::new(Guests::default());
        let ip = |last| IpAddr::from([192, 0, 2, last]);
        let all: Vec<_> = (0..CONNECTIONS_OF_ONE_MAX).map(|_| guests.clone().welcome(ip(1)).unwrap()).collect();
        assert!(guests.clone().welcome(ip(1)).is_none());
        assert!(guests.clone().welcome(ip(2)).is_some());
        drop(all);
        assert!(guests.clone().welcome(ip(1)).is_some());
        assert!(guests.0.lock().unwrap().is_empty());
    }

    #[test]
    fn the_page_is_small_and_loads_nothing_from_elsewhere() {
        let bytes: usize = FILES.iter().map(|(_, _, content)| content.len()).sum();
        assert!(bytes < 30 * 1024, "{bytes} bytes");
        for (name, _, content) in FILES {
            let foreign = content.matches("http").count() - content.matches("http://www.w3.org/2000/svg").count();
            assert_eq!(foreign, 0, "{name} names another host");
            assert!(!content.contains("innerHTML"), "{name}");
        }
    }
}
