//! The two headers as pnet packet types. Everything behind the first eight bytes is payload here: its length depends on
//! the version and the family.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-------+-------+---------------+---------------+---------------+
//! |version| type  |     VRID      |   priority    | address count |
//! +-------+-------+---------------+---------------+---------------+
//! |   auth type   | interval (s)  |           checksum            |  version 2: 8 bytes of authentication at the end
//! +-------+-------+---------------+---------------+---------------+
//! | rsvd  |    interval (cs)      |           checksum            |  version 3
//! +-------+-----------------------+---------------+---------------+
//! | addresses, 4 or 16 bytes each                                 |
//! ```

// The structs are only what the macro makes packet types of.
#![allow(dead_code)]

use pnet_macros::packet;
use pnet_macros_support::types::{u4, u12be, u16be};

/// Bytes of either header.
pub(super) const HEADER_LEN: usize = 8;
/// Where the checksum stands, in 16-bit words, for pnet's sums that leave it out.
pub(super) const CHECKSUM_WORD: usize = 3;
/// The only packet type there is. RFC 9568, 5.2.2.
pub(super) const TYPE_ADVERTISEMENT: u8 = 1;
/// Version 2's field of authentication data, always there. RFC 3768, 5.3.10.
pub(super) const AUTH_LEN: usize = 8;

/// RFC 3768, 5.1.
#[packet]
pub struct VrrpV2 {
    pub version: u4,
    pub kind: u4,
    pub vrid: u8,
    pub priority: u8,
    pub count: u8,
    pub auth_type: u8,
    pub seconds: u8,
    pub checksum: u16be,
    #[payload]
    pub payload: Vec<u8>,
}

/// RFC 9568, 5.1.
#[packet]
pub struct VrrpV3 {
    pub version: u4,
    pub kind: u4,
    pub vrid: u8,
    pub priority: u8,
    pub count: u8,
    // Sent as zero, ignored on receipt.
    pub reserved: u4,
    pub centiseconds: u12be,
    pub checksum: u16be,
    #[payload]
    pub payload: Vec<u8>,
}
