//! JSON as a client wrote it, taken apart without a copy: this code, not the client, decides what a
//! request costs beside its own bytes.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

/// The most characters of a name that an error shows.
const SHOWN: usize = 100;

/// What is wrong with an object.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadObject {
    #[error("{0}")]
    Syntax(serde_json::Error),
    #[error("it must be a JSON object")]
    NotAnObject,
    #[error("unknown field `{name}`, expected one of {}", quoted(.expected))]
    Unknown { name: String, expected: Vec<&'static str> },
    #[error("field `{0}` appears twice")]
    Twice(&'static str),
    #[error("{0}")]
    Entry(String),
}

fn quoted(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// Calls `each` with the name and the value of every entry of a JSON object, as they were written,
/// until `each` returns an error.
pub(crate) fn entries<'a>(
    text: &'a [u8],
    each: impl FnMut(&'a RawValue, &'a RawValue) -> Result<(), String>,
) -> Result<(), BadObject> {
    struct Entries<F> {
        each: F,
        wrong: Option<String>,
    }

    impl<'de, F: FnMut(&'de RawValue, &'de RawValue) -> Result<(), String>> Visitor<'de> for &mut Entries<F> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
            while let Some((name, value)) = map.next_entry::<Name<'de>, &RawValue>()? {
                (self.each)(name.0, value).map_err(|wrong| {
                    self.wrong = Some(wrong);
                    A::Error::custom("")
                })?;
            }
            Ok(())
        }
    }

    // If the value is not an object, the parser's error would contain the whole value.
    match text.trim_ascii_start().first() {
        Some(b'{') | None => {}
        Some(_) => return Err(BadObject::NotAnObject),
    }
    let mut entries = Entries { each, wrong: None };
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let read = deserializer.deserialize_map(&mut entries).and_then(|()| deserializer.end());
    match (read, entries.wrong) {
        (Ok(()), _) => Ok(()),
        (Err(_), Some(wrong)) => Err(BadObject::Entry(wrong)),
        (Err(error), None) => Err(BadObject::Syntax(error)),
    }
}

/// A name as it was written.
struct Name<'a>(&'a RawValue);

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <&RawValue>::deserialize(deserializer).map(Self)
    }
}

/// The values of the named fields, as they were written; `None` for a field that is missing or
/// `null`. Every other field is an error.
pub(crate) fn fields<'a, const N: usize>(
    text: &'a [u8],
    expected: [&'static str; N],
) -> Result<[Option<&'a RawValue>; N], BadObject> {
    let mut found = [None; N];
    let (mut unknown, mut twice) = (None, None);
    let read = entries(text, |name, value| {
        let known = expected.iter().zip(&mut found).find(|(field, _)| is_named(name, field));
        match known {
            Some((field, Some(_))) => twice = Some(*field),
            Some((_, place)) => {
                *place = Some(value);
                return Ok(());
            }
            None => unknown = Some(shown(name)),
        }
        Err(String::new())
    });
    if let Some(name) = unknown {
        return Err(BadObject::Unknown { name, expected: expected.to_vec() });
    }
    if let Some(field) = twice {
        return Err(BadObject::Twice(field));
    }
    read?;
    Ok(found.map(|value| value.filter(|value| value.get() != "null")))
}

/// Whether a name, as it was written, stands for `name`.
pub(crate) fn is_named(written: &RawValue, name: &str) -> bool {
    let text = written.get();
    // A written name has two quotes and, with escapes, at most six characters for each byte. A
    // longer text is not decoded.
    text.len() <= 6 * name.len() + 2 && Text::of(written).is_ok_and(|text| text.to_string() == name)
}

/// The beginning of a name, for an error.
fn shown(written: &RawValue) -> String {
    let text = written.get().trim_matches('"');
    let mut shown: String = text.chars().take(SHOWN).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}

/// A JSON string as it was written, and the number of bytes that it decodes to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Text<'a> {
    /// The text between the quotes.
    written: &'a str,
    bytes: usize,
}

/// Why a value is not a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadText {
    #[error("it must be a string")]
    NotAString,
    #[error("it has half of a surrogate pair as a \\u escape, which is not a character")]
    LoneSurrogate,
}

impl<'a> Text<'a> {
    pub(crate) fn of(value: &'a RawValue) -> Result<Self, BadText> {
        let quoted = value.get().strip_prefix('"').and_then(|text| text.strip_suffix('"'));
        let written = quoted.ok_or(BadText::NotAString)?;
        let bytes = decoded_len(written)?;
        Ok(Self { written, bytes })
    }

    /// The length of the decoded text.
    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    /// The text, if it was written without escapes.
    pub(crate) fn plain(&self) -> Option<&'a str> {
        (self.bytes == self.written.len()).then_some(self.written)
    }
}

/// The most that is decoded of a text before it is passed on.
const BLOCK_BYTES: usize = 4096;

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut rest, mut block) =
            (self.written.as_bytes(), Block(Vec::with_capacity(self.written.len().min(BLOCK_BYTES))));
        loop {
            match rest {
                [] => return block.pass_on(f),
                [b'\\', b'u', ..] => {
                    let (c, written) = code_point(rest).map_err(|_| fmt::Error)?;
                    block.add(c.encode_utf8(&mut [0; 4]).as_bytes(), f)?;
                    rest = rest.get(written..).unwrap_or_default();
                }
                [b'\\', letter, behind @ ..] => {
                    block.add(&[one_byte(*letter)], f)?;
                    rest = behind;
                    // There may be millions of such escapes in a row.
                    while let [b'\\', letter, behind @ ..] = rest
                        && *letter != b'u'
                        && block.0.len() < BLOCK_BYTES
                    {
                        block.0.push(one_byte(*letter));
                        rest = behind;
                    }
                }
                _ => {
                    let (plain, behind) = until_escape(rest);
                    block.add(plain, f)?;
                    rest = behind;
                }
            }
        }
    }
}

/// Decoded text that is not yet passed on. It consists of whole characters.
struct Block(Vec<u8>);

impl Block {
    fn add(&mut self, text: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.len() + text.len() > BLOCK_BYTES {
            self.pass_on(f)?;
        }
        if text.len() > BLOCK_BYTES {
            return f.write_str(str::from_utf8(text).map_err(|_| fmt::Error)?);
        }
        self.0.extend_from_slice(text);
        Ok(())
    }

    fn pass_on(&mut self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(str::from_utf8(&self.0).map_err(|_| fmt::Error)?)?;
        self.0.clear();
        Ok(())
    }
}

impl Serialize for Text<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.plain() {
            Some(text) => serializer.serialize_str(text),
            None => serializer.collect_str(self),
        }
    }
}

/// How many bytes the inside of a JSON string decodes to (RFC 8259, section 7). A parser has
/// accepted the string already.
fn decoded_len(written: &str) -> Result<usize, BadText> {
    let (mut rest, mut len) = (written.as_bytes(), 0);
    loop {
        match rest {
            [] => return Ok(len),
            [b'\\', b'u', ..] => {
                let (c, written) = code_point(rest)?;
                len += c.len_utf8();
                rest = rest.get(written..).unwrap_or_default();
            }
            [b'\\', _, behind @ ..] => {
                len += 1;
                rest = behind;
            }
            _ => {
                let (plain, behind) = until_escape(rest);
                len += plain.len();
                rest = behind;
            }
        }
    }
}

/// The part before the next escape, at least one byte; and the rest.
fn until_escape(text: &[u8]) -> (&[u8], &[u8]) {
    /// Up to this length a plain loop is faster than `memchr`.
    const NEAR_BYTES: usize = 16;
    let behind = text.get(1..).unwrap_or_default();
    let near = behind.iter().take(NEAR_BYTES).position(|byte| *byte == b'\\');
    let end = near.or_else(|| memchr::memchr(b'\\', behind)).map_or(text.len(), |end| 1 + end);
    text.split_at_checked(end).unwrap_or((text, &[]))
}

/// What an escape of two characters stands for.
fn one_byte(letter: u8) -> u8 {
    match letter {
        b'b' => 8,
        b'f' => 12,
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        other => other,
    }
}

/// The character that the escape `\uXXXX` at the beginning stands for, and how many bytes were
/// read. If the escape is the first half of a surrogate pair, the next escape is read with it.
fn code_point(text: &[u8]) -> Result<(char, usize), BadText> {
    let first = unit(text).ok_or(BadText::LoneSurrogate)?;
    if let Some(c) = char::from_u32(first.into()) {
        return Ok((c, 6));
    }
    let second = text.get(6..).and_then(unit).ok_or(BadText::LoneSurrogate)?;
    match char::decode_utf16([first, second]).next() {
        Some(Ok(c)) => Ok((c, 12)),
        _ => Err(BadText::LoneSurrogate),
    }
}

fn unit(text: &[u8]) -> Option<u16> {
    let [b'\\', b'u', digits @ ..] = text.first_chunk::<6>()? else { return None };
    let unit = digits.iter().try_fold(0, |unit, digit| Some((unit << 4) | char::from(*digit).to_digit(16)?))?;
    u16::try_from(unit).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn raw(text: &str) -> &RawValue {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn fields_are_found_in_any_order_and_spelling() {
        let [a, b, c] = fields(br#" {"b": [1, 2], "\u0061": "x", "c": null} "#, ["a", "b", "c"]).unwrap();
        assert_eq!(a.map(RawValue::get), Some("\"x\""));
        assert_eq!(b.map(RawValue::get), Some("[1, 2]"));
        assert!(c.is_none());
    }

    #[test]
    fn an_invalid_object_is_explained_briefly() {
        let long = format!("{{\"{}\": 1}}", "x".repeat(1 << 20));
        for (text, word) in [
            ("[]", "JSON object"),
            ("\"x\"", "JSON object"),
            ("", "EOF"),
            ("{\"a\": 1} 2", "trailing"),
            ("{\"b\": 1}", "unknown field `b`, expected one of `a`, `z`"),
            ("{\"a\": 1, \"a\": 2}", "`a` appears twice"),
            ("{\"a\": tru}", "expected"),
            (&long, "…`, expected"),
        ] {
            let error = fields(text.as_bytes(), ["a", "z"]).unwrap_err().to_string();
            assert!(error.contains(word) && error.len() < 300, "{text:.40} -> {error}");
        }
        assert!(fields(b"{\"a\": \"\xff\"}", ["a"]).is_err());
    }

    #[test]
    fn half_a_surrogate_pair_is_not_a_text() {
        for text in [r#""\ud800""#, r#""\ud800x""#, r#""\ud800\u0041""#, r#""\udc00""#, r#""\ud800\ud800""#] {
            assert_eq!(Text::of(raw(text)).unwrap_err(), BadText::LoneSurrogate, "{text}");
        }
        assert_eq!(Text::of(raw("1")).unwrap_err(), BadText::NotAString);
    }

    #[test]
    fn a_text_of_many_blocks_decodes_as_in_the_parser() {
        let long = "x".repeat(2 * BLOCK_BYTES);
        for piece in
            [r"\n", r"\/", r"\u0041", r"\u00e9", "\u{e9}", r"\ud83d\ude00", r#"\"x"#, &long, r"x\\", "\u{e9}\\t"]
        {
            for before in ["", "x", "xx", "\u{e9}"] {
                let written = format!("\"{before}{}\"", piece.repeat(2 * BLOCK_BYTES / piece.len() + 2));
                let (expected, read) =
                    (serde_json::from_str::<String>(&written).unwrap(), Text::of(raw(&written)).unwrap());
                assert!(read.to_string() == expected && read.len() == expected.len(), "{before}{piece:.20}");
            }
        }
    }

    proptest! {
        /// The decoded text is that of `serde_json`, to the byte, and so is its encoding for a
        /// worker.
        #[test]
        fn a_text_decodes_as_in_the_parser(text in "(\\PC|[\"\\\\/\n\r\t\u{8}\u{c}\u{0}\u{1f600}]){0,40}", ascii in any::<bool>()) {
            let mut written = serde_json::to_string(&text).unwrap();
            if ascii {
                let escaped = |c: char| c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect::<String>();
                written = written.chars().map(|c| if c.is_ascii() { c.to_string() } else { escaped(c) }).collect();
            }
            let read = Text::of(raw(&written)).unwrap();
            prop_assert_eq!(read.to_string(), text.clone());
            prop_assert_eq!(read.len(), text.len());
            prop_assert_eq!(enisle_wire::encode(&read, 1000).unwrap(), enisle_wire::encode(&text, 1000).unwrap());
        }
    }
}
