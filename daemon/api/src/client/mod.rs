//! Clients of the daemon's socket.
//!
//! | client | for |
//! |---|---|
//! | [`Client`] | the command line: refuses a listener of an unknown uid (feature `client`) |
//! | [`blocking`] | tests and benchmarks: standard library only (feature `blocking`) |

#[cfg(feature = "blocking")]
pub mod blocking;
#[cfg(feature = "client")]
mod hyper;

#[cfg(feature = "client")]
pub use self::hyper::{Body, Client, ClientError};

/// A name as a segment of a path, if it can be one. The daemon decides which names are valid; this
/// function only makes sure that the name stays one segment.
#[must_use]
pub fn segment(name: &str) -> Option<&str> {
    let is_plain = |c: char| c.is_ascii_graphic() && !"/?#%".contains(c);
    (!name.is_empty() && name.chars().all(is_plain)).then_some(name)
}

/// Text, percent-encoded as the value of a parameter (RFC 3986, section 2.1).
#[must_use]
pub fn encoded(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_one_segment_and_a_text_one_value() {
        for name in ["", "a/b", "a?b", "a#b", "a%2fb", "a b", "é"] {
            assert_eq!(segment(name), None, "{name}");
        }
        assert_eq!(segment("acme-1.x_Y"), Some("acme-1.x_Y"));
        assert_eq!(encoded("a-Z.0~_ &é"), "a-Z.0~_%20%26%C3%A9");
    }
}
