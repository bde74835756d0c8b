//! What the two nodes of a pair promise each other, over one authenticated stream.
//!
//! - `message`: what they say, and its bytes.
//! - `session`: one connection's conversation, from the greeting to its end: which journals are shipped which way, from
//!   where, and how far the other one has them.
//! - `promise`: what an acknowledgement to a sender waits for, with and without the other node.
//! - `delivery`: which of the two delivers which journals.
//! - `moving`: what they say of live connections that move with the addresses.
//!
//! A journal is shipped by the node that writes it, as far as it is durable there. A journal whose writer lost its disk
//! is an orphan: whoever has more of it ships it to the other, so that either can deliver it. What has arrived is never
//! edited; the receiver's position decides where shipping begins.

pub mod delivery;
pub mod message;
pub mod moving;
pub mod promise;
pub mod session;
