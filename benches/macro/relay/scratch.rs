//! A directory for one relay.

use std::fs;
use std::path::{self, Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context, Result};

use super::ports::Ports;
use super::{Kind, Setup};

/// A directory that is removed with all its contents.
pub struct Scratch(pub PathBuf);

impl Scratch {
    fn create(parent: &Path) -> Result<Scratch> {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let name = format!("macro-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        // Not relative: rsyslog changes to its working directory.
        let dir = path::absolute(parent)?.join(name);
        fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
        Ok(Scratch(dir))
    }

    pub fn with_configuration(parent: &Path, kind: Kind, ports: Ports, setup: Setup) -> Result<Scratch> {
        let dir = Scratch::create(parent)?;
        let text = kind.config(&dir.0, ports, setup)?;
        fs::write(dir.0.join("config"), text).context("writing the relay's configuration")?;
        Ok(dir)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("macro: removing {}: {error}", self.0.display());
        }
    }
}
