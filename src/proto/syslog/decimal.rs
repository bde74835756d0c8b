//! Numbers as text, two digits at a time: a rendered message holds about twenty of them, and divisions are what they
//! cost.

const PAIRS: [[u8; 2]; 100] = {
    let mut pairs = [[0; 2]; 100];
    let mut value = 0;
    while value < 100 {
        pairs[value] = [b'0' + (value / 10) as u8, b'0' + (value % 10) as u8];
        value += 1;
    }
    pairs
};

/// The two digits of `value`, which is below 100.
pub(super) fn pair(value: u32) -> [u8; 2] {
    PAIRS[value as usize]
}

/// Appends `value` without leading zeros.
pub(in crate::proto) fn push(out: &mut Vec<u8>, mut value: u64) {
    if value < 10 {
        return out.push(b'0' + value as u8);
    }
    if value < 100 {
        return out.extend_from_slice(&pair(value as u32));
    }
    let mut text = [0; 20];
    let mut start = text.len();
    while value >= 100 {
        start -= 2;
        text[start..start + 2].copy_from_slice(&pair((value % 100) as u32));
        value /= 100;
    }
    start -= 2;
    text[start..start + 2].copy_from_slice(&pair(value as u32));
    start += usize::from(value < 10);
    out.extend_from_slice(&text[start..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_rust_writes_them() {
        let mut values: Vec<u64> = (0..10_100).chain([u64::MAX]).collect();
        values.extend((0..64).flat_map(|bit| [(1 << bit) - 1, 1 << bit]));
        for value in values {
            let mut out = Vec::new();
            push(&mut out, value);
            assert_eq!(out, value.to_string().as_bytes());
        }
    }
}
