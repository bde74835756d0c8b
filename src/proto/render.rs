//! Any envelope as lines of JSON, whatever it carries: for files, `tail` and `journal cat`.

use super::envelope::{Envelope, Kind};
use super::forward::compression::InflateError;
use super::forward::event;
use super::syslog::message::{Context, Message};
use super::syslog::render;
use super::syslog::shared_text::SharedText;
use super::syslog::zone::Zone;

/// What an envelope's lines are made with.
#[derive(Debug)]
pub struct JsonLines<'a> {
    /// Of the journal whose positions the ids are made of.
    pub text: &'a mut SharedText,
    /// What a syslog timestamp without a zone means.
    pub zone: Zone,
    /// Whether with `raw_b64`, the bytes as received.
    pub raw: bool,
}

impl JsonLines<'_> {
    /// Appends a line for each message of `envelope` that `wanted` says yes to: it is asked once for each, in their order.
    /// Gives the number of lines. A syslog message without content makes no event and no line (P11).
    ///
    /// # Errors
    /// A chunk cannot be decompressed; see [`event::for_each`].
    pub fn write(
        &mut self,
        out: &mut Vec<u8>,
        envelope: &Envelope<'_>,
        mut wanted: impl FnMut() -> bool,
    ) -> Result<u64, InflateError> {
        let mut lines = 0;
        match envelope.kind {
            Kind::Syslog => {
                if !wanted() {
                    return Ok(0);
                }
                let context = Context::new(&envelope.origin, self.zone);
                if let Some(message) = Message::parse(envelope.payload, &context) {
                    render::json(out, self.text, envelope, &message, self.raw);
                    out.push(b'\n');
                    lines = 1;
                }
            }
            Kind::Forward(_) => event::for_each(envelope.payload, |number, entry| {
                if wanted() {
                    event::json(out, self.text, envelope, number, entry, self.raw);
                    out.push(b'\n');
                    lines += 1;
                }
            })?,
        }
        Ok(lines)
    }
}
