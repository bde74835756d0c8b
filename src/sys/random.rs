//! Random bytes that nobody can foresee.

use std::io;

/// `N` bytes from the operating system, at most 256: so many come at once or not at all (getrandom(2)).
///
/// # Errors
/// What the system says; never on a kernel that has booted.
pub fn bytes<const N: usize>() -> io::Result<[u8; N]> {
    const { assert!(N <= 256, "more may come in parts") };
    let mut bytes = [0; N];
    // SAFETY: the kernel writes at most `N` bytes into `bytes`, which is that long.
    let filled = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), N, 0) };
    match usize::try_from(filled) {
        Ok(filled) if filled == N => Ok(bytes),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_draws_differ() {
        assert_ne!(bytes::<32>().unwrap(), bytes::<32>().unwrap());
    }
}
