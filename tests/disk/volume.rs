//! A small ext4 of one test, in a file on a loop device.
//!
//! It is mounted in a mount namespace of the test's own thread: whatever ends the test, SIGKILL included, also unmounts
//! it and frees the loop device. Children and threads that the test starts afterwards see it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statvfs::statvfs;

/// A mounted file system; unmounted with the value, which must therefore live longer than the daemon on it.
pub struct Volume {
    image: PathBuf,
    mount_point: PathBuf,
}

impl Volume {
    /// Makes a file system of this size and mounts it at `mount_point`; its image is the file beside it.
    ///
    /// # Panics
    /// If the system does not let us.
    #[track_caller]
    pub fn mounted_at(mount_point: PathBuf, size_bytes: u64) -> Volume {
        let own_namespace = unshare(CloneFlags::CLONE_NEWNS);
        own_namespace.expect("this test needs root and loop devices: it mounts a small file system");
        // Or our mounts would appear in the namespace that we left.
        succeed(Command::new("mount").args(["--make-rprivate", "/"]));
        let image = mount_point.with_extension("img");
        File::create(&image).and_then(|file| file.set_len(size_bytes)).expect("a sparse file");
        std::fs::create_dir(&mount_point).expect("a directory for the mount");
        // No space only for root: the daemon of the test is root. Small journal and no zeroing in the background.
        succeed(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0", "-E", "lazy_itable_init=0"]).arg(&image));
        let volume = Volume { image, mount_point };
        volume.mount();
        volume
    }

    #[track_caller]
    fn mount(&self) {
        // After an error of the disk no more writes: what distributions set for the file systems of servers.
        let options = "loop,errors=remount-ro";
        succeed(Command::new("mount").args(["-t", "ext4", "-o", options]).arg(&self.image).arg(&self.mount_point));
    }

    /// A path on it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.mount_point.join(name)
    }

    /// Takes all space but `free_bytes`.
    #[track_caller]
    pub fn fill_but(&self, free_bytes: u64) {
        let all = self.free_bytes();
        let length = all.checked_sub(free_bytes).expect("so much is free");
        let ballast = File::create(self.ballast()).expect("a file on the volume");
        fallocate(&ballast, FallocateFlags::empty(), 0, length.cast_signed()).expect("what is free can be taken");
    }

    /// Gives the space back.
    #[track_caller]
    pub fn free(&self) {
        std::fs::remove_file(self.ballast()).expect("the volume was filled");
    }

    /// Bytes that a file could still have.
    pub fn free_bytes(&self) -> u64 {
        let statistics = statvfs(&self.mount_point).expect("mounted");
        statistics.blocks_available() * statistics.fragment_size()
    }

    fn ballast(&self) -> PathBuf {
        self.path("ballast")
    }

    /// What a broken disk does: an error in the file system's own blocks makes it read-only, files that are open for
    /// writing or not. A remount by hand would be refused because of those.
    #[track_caller]
    pub fn fail(&self) {
        let device =
            succeed(Command::new("findmnt").args(["-n", "-o", "SOURCE", "--mountpoint"]).arg(&self.mount_point));
        let device = device.trim().strip_prefix("/dev/loop").expect("nothing but our own loop device may fail");
        let trigger = Path::new("/sys/fs/ext4").join(format!("loop{device}")).join("trigger_fs_error");
        std::fs::write(trigger, "a test of twinlog").expect("the kernel's own test of ext4 errors");
    }

    /// Repairs it as an operator would: unmount, fsck, mount.
    #[track_caller]
    pub fn repair(&self) {
        succeed(Command::new("umount").arg(&self.mount_point));
        // 1: errors were corrected.
        let checked = run(Command::new("fsck.ext4").args(["-f", "-y"]).arg(&self.image));
        assert!(matches!(checked.status.code(), Some(0 | 1)), "{checked:?}");
        self.mount();
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // Lazily: also if a failed test left somebody on it.
        let _ = Command::new("umount").arg("--lazy").arg(&self.mount_point).status();
    }
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

#[track_caller]
fn succeed(command: &mut Command) -> String {
    let output = run(command);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "this test needs root and loop devices: {command:?}: {errors}");
    String::from_utf8(output.stdout).expect("text")
}
