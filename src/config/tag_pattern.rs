//! Patterns of tags, as Fluentd writes them.
//!
//! A tag has parts between dots. `*` stands for any bytes of one part, `**` for any number of parts (none too: `a.**`
//! takes `a`), `{x,y}` for one of several patterns, a backslash for the next byte as it is. Source: Fluentd's
//! documentation ("How match patterns work") and its tests, which are among those below. Without its `/regular
//! expressions/` and `#{ruby}`.
//!
//! Tags come from senders, so matching takes time proportional to pattern × tag for the worst of both: it follows all
//! possibilities at once instead of going back.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// The most patterns that braces may stand for; `{a,b}{c,d}` are four.
const ALTERNATIVES_MAX: usize = 256;

/// A compiled pattern. Compares by its text.
#[derive(Clone)]
pub struct TagPattern {
    text: String,
    alternatives: Vec<Alternative>,
}

/// A text that is no tag pattern.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum InvalidTagPattern {
    /// Nothing.
    #[error("cannot be empty")]
    Empty,
    /// A brace without its partner.
    #[error("has a brace without its partner")]
    Brace,
    /// Nothing after the last backslash.
    #[error("ends in a backslash")]
    Backslash,
    /// More than 256 combinations.
    #[error("stands for too many combinations")]
    TooMany,
}

impl TagPattern {
    /// Compiles a pattern.
    ///
    /// # Errors
    /// See [`InvalidTagPattern`].
    pub fn compile(text: &str) -> Result<TagPattern, InvalidTagPattern> {
        if text.is_empty() {
            return Err(InvalidTagPattern::Empty);
        }
        let alternatives = expand(text.as_bytes())?.iter().map(|pattern| Alternative::compile(pattern)).collect();
        Ok(TagPattern { text: text.to_owned(), alternatives })
    }

    /// Whether the whole tag fits.
    #[must_use]
    pub fn matches(&self, tag: &[u8]) -> bool {
        self.alternatives.iter().any(|alternative| alternative.matches(tag))
    }

    /// The pattern as written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// A pattern without braces: bytes that the tag must begin with, then what must follow.
#[derive(Clone)]
struct Alternative {
    prefix: Vec<u8>,
    rest: Vec<Step>,
}

#[derive(Clone, Copy, PartialEq)]
enum Step {
    Byte(u8),
    /// `*`: any bytes but dots.
    Part,
    /// `**`: any bytes.
    Any,
    /// `**.`: nothing at the tag's begin, or any bytes up to and with a dot.
    Parts,
    /// `.` before `**`: here is the tag's end or a dot.
    Edge,
}

impl Alternative {
    fn compile(pattern: &[u8]) -> Alternative {
        let mut steps = Vec::new();
        let mut rest = pattern;
        loop {
            rest = match rest {
                [] => break,
                [b'\\', byte, tail @ ..] => {
                    steps.push(Step::Byte(*byte));
                    tail
                }
                [b'.', b'*', b'*', ..] => {
                    steps.push(Step::Edge);
                    &rest[1..]
                }
                [b'*', b'*', b'.', tail @ ..] => {
                    steps.push(Step::Parts);
                    tail
                }
                [b'*', b'*', tail @ ..] => {
                    steps.push(Step::Any);
                    tail
                }
                [b'*', tail @ ..] => {
                    steps.push(Step::Part);
                    tail
                }
                [byte, tail @ ..] => {
                    steps.push(Step::Byte(*byte));
                    tail
                }
            };
        }
        let prefix: Vec<u8> =
            steps.iter().map_while(|step| if let Step::Byte(byte) = step { Some(*byte) } else { None }).collect();
        let rest = steps.split_off(prefix.len());
        Alternative { prefix, rest }
    }

    fn matches(&self, tag: &[u8]) -> bool {
        if !tag.starts_with(&self.prefix) {
            return false;
        }
        match self.rest[..] {
            [] => tag.len() == self.prefix.len(),
            [Step::Any] => true,
            [Step::Edge, Step::Any] => tag.get(self.prefix.len()).is_none_or(|byte| *byte == b'.'),
            _ => self.matches_slowly(tag),
        }
    }

    /// `reached[i]` says whether the steps so far can have taken exactly the first `i` bytes.
    fn matches_slowly(&self, tag: &[u8]) -> bool {
        let mut reached = vec![false; tag.len() + 1];
        reached[self.prefix.len()] = true;
        for step in &self.rest {
            match step {
                Step::Byte(byte) => {
                    for at in (0..tag.len()).rev() {
                        reached[at + 1] = reached[at] && tag[at] == *byte;
                    }
                    reached[0] = false;
                }
                Step::Part => {
                    for at in 0..tag.len() {
                        reached[at + 1] |= reached[at] && tag[at] != b'.';
                    }
                }
                Step::Any => {
                    let first = reached.iter().position(|reached| *reached).unwrap_or(reached.len());
                    reached[first..].fill(true);
                }
                Step::Parts => {
                    let first = reached.iter().position(|reached| *reached).unwrap_or(reached.len());
                    let from_begin = reached[0];
                    for at in 0..reached.len() {
                        reached[at] = (at == 0 && from_begin) || (at > first && tag[at - 1] == b'.');
                    }
                }
                Step::Edge => {
                    for at in 0..tag.len() {
                        reached[at] &= tag[at] == b'.';
                    }
                }
            }
        }
        reached[tag.len()]
    }
}

/// Inside one brace: the alternatives before the last comma, and what those since then are so far. More than one,
/// because an inner brace multiplies them.
struct Level {
    finished: Vec<Vec<u8>>,
    current: Vec<Vec<u8>>,
}

impl Default for Level {
    fn default() -> Level {
        Level { finished: Vec::new(), current: vec![Vec::new()] }
    }
}

/// Writes out the braces: `a.{b,c}` becomes `a.b` and `a.c`.
fn expand(pattern: &[u8]) -> Result<Vec<Vec<u8>>, InvalidTagPattern> {
    // The outermost, then one for each open brace.
    let mut open = vec![Level::default()];
    let mut bytes = pattern.iter().copied();
    while let Some(byte) = bytes.next() {
        let depth = open.len();
        let Level { finished, current } = open.last_mut().expect("the outermost is never closed");
        match byte {
            b'{' => open.push(Level::default()),
            b',' if depth > 1 => finished.append(&mut std::mem::replace(current, vec![Vec::new()])),
            b'}' => {
                let Level { finished: mut inner, current: mut last } =
                    open.pop().expect("the outermost is never closed");
                inner.append(&mut last);
                let Level { current, .. } = open.last_mut().ok_or(InvalidTagPattern::Brace)?;
                if current.len() * inner.len() > ALTERNATIVES_MAX {
                    return Err(InvalidTagPattern::TooMany);
                }
                *current =
                    current.iter().flat_map(|head| inner.iter().map(|tail| [&head[..], tail].concat())).collect();
            }
            b'\\' => {
                let escaped = bytes.next().ok_or(InvalidTagPattern::Backslash)?;
                current.iter_mut().for_each(|text| text.extend([b'\\', escaped]));
            }
            _ => current.iter_mut().for_each(|text| text.push(byte)),
        }
    }
    match <[_; 1]>::try_from(open) {
        Ok([Level { current, .. }]) => Ok(current),
        Err(_) => Err(InvalidTagPattern::Brace),
    }
}

impl FromStr for TagPattern {
    type Err = InvalidTagPattern;

    fn from_str(text: &str) -> Result<TagPattern, InvalidTagPattern> {
        TagPattern::compile(text)
    }
}

impl PartialEq for TagPattern {
    fn eq(&self, other: &TagPattern) -> bool {
        self.text == other.text
    }
}

impl Eq for TagPattern {}

impl fmt::Debug for TagPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TagPattern({:?})", self.text)
    }
}

impl fmt::Display for TagPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_take_what_fluentd_takes() {
        for (pattern, taken, refused) in [
            ("a", "a", "b a.b"),
            ("a.b", "a.b", "aab a"),
            ("a*", "a ab abc", "a.b ab.c ba"),
            ("*a", "a ba cba", "ab c.a"),
            ("*a*", "a ba ac bac", "b"),
            ("a.*", "a.b a.c", "ab a a.b.c"),
            ("a.*.c", "a.b.c a.c.c", "a.c"),
            ("a.**", "a a.b a.b.c", "ab abc ab.c ab.d.e"),
            ("a**", "a ab abc a.b ab.c ab.d.e", "b"),
            ("**.a", "a b.a cb.a d.e.a", "ba c.ba"),
            ("**a", "a ba c.ba b.a cb.a d.e.a", "ab"),
            ("a.**.b", "a.b a.x.b a.x.y.b", "ab a.xb b"),
            ("**", "a a.b", ""),
            ("*", "a", "a.b"),
            ("a.{b,c}", "a.b a.c", "a.d"),
            ("a.{b,c}.**", "a.b a.c a.c.d", "a.d a.cd"),
            ("a.{b.**,c}", "a.b a.b.c a.c", "a.c.d"),
            ("{a,{b,c}.d}e", "ae b.de c.de", "be"),
            ("a{,b}", "a ab", "b"),
            ("a\\*\\{", "a*{", "ab"),
            ("a,b", "a,b", "a"),
        ] {
            let compiled = TagPattern::compile(pattern).unwrap();
            for tag in taken.split_whitespace() {
                assert!(compiled.matches(tag.as_bytes()), "{pattern} takes {tag}");
            }
            for tag in refused.split_whitespace() {
                assert!(!compiled.matches(tag.as_bytes()), "{pattern} refuses {tag}");
            }
        }
        assert!(TagPattern::compile("a.*").unwrap().matches(b"a.\xff"), "tags are bytes");
    }

    #[test]
    fn patterns_that_mean_nothing_are_refused() {
        for (pattern, error) in [
            ("", InvalidTagPattern::Empty),
            ("{a", InvalidTagPattern::Brace),
            ("a}", InvalidTagPattern::Brace),
            ("a}{b", InvalidTagPattern::Brace),
            ("a\\", InvalidTagPattern::Backslash),
            (&"{a,b}".repeat(9), InvalidTagPattern::TooMany),
        ] {
            assert_eq!(TagPattern::compile(pattern), Err(error), "{pattern}");
        }
    }

    #[test]
    fn a_hostile_tag_takes_no_longer_than_pattern_times_tag() {
        let pattern = TagPattern::compile(&"*a**".repeat(20)).unwrap();
        assert!(!pattern.matches("a".repeat(10).as_bytes()));
        assert!(!TagPattern::compile(&"**a*".repeat(20)).unwrap().matches("b".repeat(60_000).as_bytes()));
    }
}
