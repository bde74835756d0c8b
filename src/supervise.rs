//! Essential tasks: if one of them panics, the node is at fault and the process ends; nothing is resurrected inside it.
//!
//! A task that returns was asked to. A task of one connection is not essential: it costs its sender, not the node.

use std::future::Future;

use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The first essential task that panicked, by name.
#[derive(Clone, Debug, Default)]
pub struct Supervisor {
    fault: watch::Sender<Option<String>>,
}

impl Supervisor {
    /// Runs an essential task on the runtime at hand. The caller owns the handle and awaits it.
    pub fn spawn<F>(&self, name: impl Into<String>, task: F) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let watched = Watched { name: name.into(), fault: self.fault.clone() };
        tokio::spawn(async move {
            let _watched = watched;
            task.await;
        })
    }

    /// Resolves when an essential task has panicked, to its name.
    pub async fn fault(&self) -> String {
        let mut fault = self.fault.subscribe();
        loop {
            if let Some(name) = fault.borrow_and_update().clone() {
                return name;
            }
            // The sender lives in `self`.
            let _ = fault.changed().await;
        }
    }
}

struct Watched {
    name: String,
    fault: watch::Sender<Option<String>>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.fault.send_replace(Some(std::mem::take(&mut self.name)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_a_fault_and_a_return_is_none() {
        let supervisor = Supervisor::default();
        supervisor.spawn("calm", async {}).await.unwrap();
        assert!(supervisor.fault.borrow().is_none());
        assert!(supervisor.spawn("wild", async { panic!("on purpose") }).await.is_err());
        assert_eq!(supervisor.fault().await, "wild");
    }
}
