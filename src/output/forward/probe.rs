//! Trying a server without sending it anything: for `check --live`.

use bytes::BytesMut;

use super::super::endpoint::open;
use super::login::log_in;
use crate::config::{ForwardOutput, Target};
use crate::tls;

/// Connects, shakes hands as a session would, and leaves. Whether a key was proven to each other.
///
/// # Errors
/// Why the server cannot be used, in words for an operator.
pub async fn probe(target: &Target, settings: &ForwardOutput) -> Result<bool, String> {
    let opened = open(target, &tls::Client::new(&settings.tls)).await;
    let mut stream = opened.map_err(|error| error.to_string())?.stream;
    let Some(login) = &settings.login else { return Ok(false) };
    log_in(&mut stream, &mut BytesMut::new(), login).await.map_err(|error| error.to_string())?;
    Ok(true)
}
