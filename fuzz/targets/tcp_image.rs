//! The image of a TCP connection: whatever comes.
//!
//! Input: an image. What is taken is a connection that may be, and has one form: it is written as it was read.

use twinlog::proto::tcp_image::Image;

/// One input.
pub fn run(data: &[u8]) {
    let Ok(image) = Image::decode(data) else { return };
    assert_eq!(image.check(), Ok(()));
    let mut bytes = Vec::new();
    image.encode(&mut bytes);
    assert_eq!(bytes, data, "{image:?}");
}
