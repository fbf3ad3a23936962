//! The calls of the API, the fields of their bodies as the API itself reports them, and values of
//! the worst shapes for these fields.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Write as _};

use enisle_tests::Answer;
use serde_json::Value;

use crate::ground::Peer;

pub(crate) const MIB: usize = 1 << 20;
/// The size of most shapes. At this size, growth by five times the body exceeds what is allowed,
/// which is twice the body and 64 MiB.
pub(crate) const USUAL: usize = 24 * MIB;

/// A call of the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) method: &'static str,
    pub(crate) path: &'static str,
}

/// Every call in the API's description. A test of the supervisor compares the description with the
/// router.
pub(crate) fn calls() -> Vec<Call> {
    let calls = enisle_api::OPERATIONS.iter();
    calls.map(|operation| Call { method: operation.method.as_str(), path: operation.path }).collect()
}

impl Call {
    pub(crate) fn has_body(&self) -> bool {
        matches!(self.method, "PUT" | "POST" | "PATCH")
    }

    pub(crate) fn target(&self, tenant: &str) -> String {
        self.path.replace("{tenant}", tenant).replace("{id}", "s")
    }
}

impl Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

/// A place in a request: names from the outside to the inside. [`ANY`] stands for a name that the
/// client chooses.
pub(crate) type Place = Vec<String>;
pub(crate) const ANY: &str = "a.js";
/// A name that no field has.
const UNKNOWN: &str = "\\u0000x";

/// What the API has reported about the body of one call.
pub(crate) struct Body {
    pub(crate) call: Call,
    /// Objects with the names of their fields. A map has only [`ANY`].
    pub(crate) objects: BTreeMap<Place, Vec<String>>,
    /// The largest of the tried sizes at which the daemon reads the body.
    pub(crate) most: usize,
}

impl Body {
    /// Asks the API for the fields; `None` if the peer may not make this call.
    pub(crate) fn discover(call: Call, peer: &Peer, tenant: &str, most: usize) -> Option<Self> {
        let target = call.target(tenant);
        let ask = |place: &[String], value: &str| {
            let body = place.iter().rev().fold(value.to_owned(), |inner, name| format!("{{\"{name}\":{inner}}}"));
            peer.ask(call.method, &target, body.as_bytes()).expect("the daemon answers a small request")
        };
        let probe = format!("{{\"{UNKNOWN}\":1}}");
        if ask(&[], &probe).status == 403 {
            return None;
        }
        let mut objects = BTreeMap::new();
        let mut open = vec![Place::new()];
        while let Some(place) = open.pop() {
            let own = fields(&ask(&place, &probe));
            let below: Place = place.iter().cloned().chain([ANY.to_owned()]).collect();
            let fields = match own {
                Some(fields) => fields,
                // A map accepts every name, so ask for the fields of its values.
                None if !place.is_empty() && place.last().is_some_and(|name| name != ANY) => {
                    match fields(&ask(&below, &probe)) {
                        Some(_) => vec![ANY.to_owned()],
                        None => continue,
                    }
                }
                None => continue,
            };
            for name in &fields {
                open.push(place.iter().cloned().chain([name.clone()]).collect());
            }
            objects.insert(place, fields);
        }
        // The daemon reads a body of white space completely, and finds nothing in it.
        let sizes = [most, 40 * MIB, USUAL, 17 * MIB, 9 * MIB, 4 * MIB, MIB, 64 << 10, 4096];
        let fits = |size: &usize| {
            let blank = vec![b' '; *size];
            peer.ask(call.method, &target, &blank).is_ok_and(|answer| answer.status != 413)
        };
        let most = sizes.into_iter().filter(|size| *size <= most).find(fits)?;
        Some(Self { call, objects, most })
    }

    /// Every place where a value can stand, including the whole body.
    pub(crate) fn places(&self) -> Vec<Place> {
        let inside = self.objects.iter().flat_map(|(place, fields)| {
            fields.iter().map(|name| place.iter().cloned().chain([name.clone()]).collect())
        });
        std::iter::once(Place::new()).chain(inside).collect()
    }

    /// The text before and after a value at this place. With it, the request gets as far as
    /// possible before it is refused.
    pub(crate) fn around(&self, place: &[String]) -> (String, String) {
        let Some(first) = place.first() else { return (String::new(), String::new()) };
        let top = self.objects.get(&Place::new()).map_or(&[][..], Vec::as_slice);
        let beside = |name: &str| top.iter().any(|field| field == name) && first != name;
        let mut before = "{".to_owned();
        match first.as_str() {
            "modules" => before.push_str("\"mainModule\":\"a.js\","),
            "mainModule" => before.push_str("\"modules\":{\"a.js\":\"\"},"),
            _ => {
                for (name, value) in [("code", "()=>1"), ("level", "solo"), ("reason", "x")] {
                    if beside(name) {
                        let _ = write!(before, "\"{name}\":\"{value}\",");
                    }
                }
            }
        }
        let _ = write!(before, "\"{first}\":");
        for name in place.get(1..).unwrap_or_default() {
            let _ = write!(before, "{{\"{name}\":");
        }
        (before, "}".repeat(place.len()))
    }
}

/// The names in an answer `unknown field …, expected one of …`.
pub(crate) fn fields(answer: &Answer) -> Option<Vec<String>> {
    let problem: Value = serde_json::from_slice(&answer.body).ok()?;
    let (_, known) = problem["detail"].as_str()?.split_once("unknown field")?.1.split_once("expected")?;
    Some(known.split('`').skip(1).step_by(2).map(str::to_owned).collect())
}

/// A value of about the given size that costs a naive parser far more memory than that.
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    pub(crate) make: fn(usize) -> Vec<u8>,
}

pub(crate) const SHAPES: &[Shape] = &[
    Shape { name: "objects", make: |size| list(r#"{"a":0}"#, size) },
    Shape { name: "zeros", make: |size| list("0", size) },
    Shape { name: "strings", make: |size| list("\"\"", size) },
    Shape { name: "names", make: |size| named("\"\"", size) },
    Shape { name: "nested names", make: |size| named(r#"{"a":{}}"#, size) },
    Shape { name: "duplicates", make: |size| between("{", "\"a\":0,", "\"a\":0}", size) },
    Shape { name: "deep arrays", make: |size| [vec![b'['; size / 2], vec![b']'; size / 2]].concat() },
    Shape { name: "deep objects", make: |size| between("", "{\"a\":", "1", size) },
    Shape { name: "escapes", make: |size| between("\"", "\\n", "\"", size) },
    Shape { name: "control characters", make: |size| between("\"", "\\u0001", "\"", size) },
    Shape { name: "base64", make: |size| between("\"", "AAAA", "\"", size) },
    Shape { name: "number", make: |size| vec![b'1'; size] },
    Shape { name: "long name", make: |size| between("{\"", "\\u0001", "\":1}", size) },
    Shape { name: "blank", make: |size| [vec![b' '; size - 4], b"null".to_vec()].concat() },
];

pub(crate) fn between(before: &str, repeated: &str, behind: &str, size: usize) -> Vec<u8> {
    let times = size.saturating_sub(before.len() + behind.len()) / repeated.len();
    [before.as_bytes(), &repeated.as_bytes().repeat(times), behind.as_bytes()].concat()
}

pub(crate) fn list(item: &str, size: usize) -> Vec<u8> {
    between("[", &format!("{item},"), &format!("{item}]"), size)
}

/// An object with as many distinct names as fit.
pub(crate) fn named(value: &str, size: usize) -> Vec<u8> {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut object = b"{".to_vec();
    let mut number = 0_usize;
    while object.len() + value.len() + 9 < size {
        let letter = |place: u32| LETTERS[number / 64_usize.pow(place) % 64];
        object.push(b'"');
        object.extend([letter(0), letter(1), letter(2), letter(3)]);
        object.extend_from_slice(b"\":");
        object.extend_from_slice(value.as_bytes());
        object.push(b',');
        number += 1;
    }
    object.pop();
    object.push(b'}');
    object
}

/// A request whose code consists of two-character escapes: no accepted request costs more.
pub(crate) fn escapes(size: usize) -> Vec<u8> {
    between(r#"{"code":"()=>1//"#, "\\n", "\"}", size)
}
