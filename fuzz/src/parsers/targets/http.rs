//! HTTP, against a daemon in this process.
//!
//! Attacked: the server and the router, over a socket pair. The peers are root, an operator, a
//! client that may act for some tenants, and a stranger. They send requests of every operation,
//! with nearly valid bodies, and with paths, queries and headers of every kind. Several requests
//! use one connection, and are cut anywhere. Some bytes are random. No worker is started: a run is
//! refused for want of a process when its request has been read.
//!
//! Oracles:
//! * Well-formed requests are answered in order, each at most once, and the first exactly once.
//! * An answer is well formed, with a status that the OpenAPI document lists for the operation.
//! * No peer can do what no rule allows it. A refusal is a problem document.
//! * The connection ends when the client has sent everything (except for a follower of events).
//! * Afterwards nothing is charged, no run is in flight, `/v1/info` answers, and the memory of the
//!   process is within a bound.

use std::cell::RefCell;
use std::time::Duration;

use arbitrary::Unstructured;
use enisle_api::bounds::{MAX_DETAIL_BYTES, MAX_POLICY_NAME_BYTES, MAX_REASON_BYTES};
use enisle_api::operations::{Body, Method, OPERATIONS, Operation, ParameterValue, Who};
use enisle_api::types::problem::{Problem, ProblemKind};
use enisle_supervisor::seams::{Api, CLIENT, OPERATOR};
use enisle_wire::{MAX_MODULES, MAX_NAME_BYTES};

use super::bodies::{json_value, load, written};
use super::records::scratch;
use crate::parsers::draw::{Draw, damaged, ensure};

/// A daemon serves this many conversations before a new daemon replaces it.
const CONVERSATIONS: usize = 2000;
/// How long a connection may be silent before it ends, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long the fuzzer waits for a follower of events, whose answer does not end.
const FOLLOWER_PATIENCE: Duration = Duration::from_millis(20);
/// How often `/v1/info` is requested at most, until nothing is charged any more.
const ROUNDS: usize = 2000;
/// The most memory that the process may hold: what the configuration allows for bodies and scripts,
/// and the fuzzer itself.
const MOST_RESIDENT_BYTES: u64 = 1 << 30;
const STRANGER: u32 = 4_000_002;

struct Served {
    api: Api,
    conversations: usize,
    _state: tempfile::TempDir,
}

thread_local! {
    static SERVED: RefCell<Option<Served>> = const { RefCell::new(None) };
}

/// A request, and what is known about it.
#[derive(Debug)]
struct Request {
    bytes: Vec<u8>,
    method: String,
    /// The operation, if method, path and query were not changed.
    operation: Option<&'static Operation>,
    /// The tenant in the path, as it is written there.
    tenant: String,
    /// The request is well formed (RFC 9112), and has no header that may end the connection.
    is_clean: bool,
    follows: bool,
    /// Part of the body is longer than a bound allows.
    is_over: bool,
}

pub(in crate::parsers) fn http(u: &mut Unstructured<'_>) -> Result<(), String> {
    SERVED.with_borrow_mut(|served| {
        if served.as_ref().is_none_or(|served| served.conversations >= CONVERSATIONS) {
            // The threads of the old daemon must end first.
            *served = None;
            let state = scratch()?;
            *served = Some(Served { api: Api::new(state.path())?, conversations: 0, _state: state });
        }
        let Some(serving) = served else { return Ok(()) };
        serving.conversations += 1;
        let held = converse(&serving.api, u);
        if held.is_err() {
            *served = None;
        }
        held
    })
}

fn converse(api: &Api, u: &mut Unstructured<'_>) -> Result<(), String> {
    if u.rarely(400) {
        return crowd(api);
    }
    let uid = *u.pick(&[0, CLIENT, OPERATOR, STRANGER]);
    let requests: Vec<_> = (0..=u.below(3)).map(|_| request(u)).collect();
    let mut bytes: Vec<u8> = requests.iter().flat_map(|request| request.bytes.clone()).collect();
    let is_whole = !u.rarely(4);
    if !is_whole {
        bytes = damaged(bytes, u);
    }
    let parts = cut(&bytes, u);
    let follows = requests.iter().any(|request| request.follows) || bytes.windows(6).any(|word| word == b"follow");
    let answered = api.talk(uid, &parts, if follows { FOLLOWER_PATIENCE } else { PATIENCE })?;
    let shown = || format!("uid {uid} sent {:?}\nand was answered {:?}", lossy(&bytes), lossy(&answered.bytes));
    ensure(answered.ended || follows, || format!("the connection does not end: {}", shown()))?;
    if is_whole {
        check(uid, &requests, &answered.bytes, follows).map_err(|wrong| format!("{wrong}: {}", shown()))?;
    }
    settle(api, uid).map_err(|wrong| format!("{wrong}: {}", shown()))
}

/// When all connections are taken, a further one is refused in words, and the others stay. Soon
/// after they are closed, the daemon answers again.
fn crowd(api: &Api) -> Result<(), String> {
    let mut answers = api.crowd(PATIENCE)?;
    let refused = answers.pop().unwrap_or_default();
    let shown = || format!("{:?}", lossy(&refused));
    ensure(refused.starts_with(b"HTTP/1.1 503 "), || format!("one connection too many is answered {}", shown()))?;
    let refusal = read(&mut &*refused, "GET", false)?.ok_or("no answer")?;
    serde_json::from_slice::<Problem>(&refusal.body).map_err(|error| format!("{error}: {}", shown()))?;
    ensure(answers.iter().all(Vec::is_empty), || format!("connections that may be there are answered: {answers:?}"))?;
    for _ in 0..ROUNDS {
        if api
            .ask(b"GET /v1/info HTTP/1.1\r\nhost: d\r\nconnection: close\r\n\r\n", PATIENCE)?
            .starts_with(b"HTTP/1.1 200 ")
        {
            return Ok(());
        }
    }
    Err("connections are not given back".to_owned())
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Cuts the bytes into up to four parts.
fn cut(bytes: &[u8], u: &mut Unstructured<'_>) -> Vec<Vec<u8>> {
    let mut at: Vec<_> = (0..u.below(4)).map(|_| u.below(bytes.len() + 1)).collect();
    at.extend([0, bytes.len()]);
    at.sort_unstable();
    at.windows(2).map(|pair| bytes[pair[0]..pair[1]].to_vec()).collect()
}

/// Checks that the daemon holds nothing for the uid after a conversation.
fn settle(api: &Api, uid: u32) -> Result<(), String> {
    for _ in 0..ROUNDS {
        let info = api.ask(b"GET /v1/info HTTP/1.1\r\nhost: d\r\nconnection: close\r\n\r\n", PATIENCE)?;
        ensure(info.starts_with(b"HTTP/1.1 200 "), || format!("/v1/info answers {}", lossy(&info)))?;
        if api.held_by(uid) == 0 && api.in_flight() == 0 {
            return resident();
        }
    }
    Err(format!("uid {uid} still holds {} bytes, and {} runs are in flight", api.held_by(uid), api.in_flight()))
}

fn resident() -> Result<(), String> {
    let statm = std::fs::read_to_string("/proc/self/statm").map_err(|error| error.to_string())?;
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    ensure(pages * 4096 < MOST_RESIDENT_BYTES, || format!("the process holds {} MiB", pages / 256))
}

/// An answer that was read.
#[derive(Debug)]
struct Answer {
    status: u16,
    content_type: String,
    body: Vec<u8>,
    has_version: bool,
}

/// Compares the answers with the requests, in order.
fn check(uid: u32, requests: &[Request], mut bytes: &[u8], follows: bool) -> Result<(), String> {
    for (at, request) in requests.iter().enumerate() {
        if !request.is_clean {
            return Ok(());
        }
        let Some(answer) = read(&mut bytes, &request.method, follows)? else {
            return ensure(at > 0 || follows, || "no answer".to_owned());
        };
        judge(uid, request, &answer).map_err(|wrong| format!("{wrong} ({request:?}, {answer:?})"))?;
    }
    ensure(bytes.is_empty(), || "more answers than requests".to_owned())
}

fn judge(uid: u32, request: &Request, answer: &Answer) -> Result<(), String> {
    ensure(answer.has_version, || "an answer that the router did not make".to_owned())?;
    let is_problem = answer.status >= 400;
    let known = match request.operation {
        Some(operation) => {
            let fine = operation.answers.iter().map(|answered| answered.status);
            fine.chain(operation.problems.iter().map(|kind| kind.status())).any(|status| status == answer.status)
        }
        None => !is_problem || ProblemKind::ALL.iter().any(|kind| kind.status() == answer.status),
    };
    let may = request.operation.is_none_or(|operation| may_call(uid, operation, &request.tenant));
    // An invalid name is refused before the peer's right to that name is checked.
    ensure(may || [400, 403].contains(&answer.status), || "a peer did what no rule lets it do".to_owned())?;
    ensure(is_problem || !request.is_over || request.operation.is_none(), || "a bound that does not hold".to_owned())?;
    ensure(known, || format!("status {} is not in the API's description", answer.status))?;
    if is_problem {
        ensure(answer.content_type == "application/problem+json", || "a refusal that is not a problem".to_owned())?;
        if request.method != "HEAD" {
            let problem: Problem = serde_json::from_slice(&answer.body).map_err(|error| format!("{error}"))?;
            let fits = problem.status == answer.status && problem.detail.len() <= MAX_DETAIL_BYTES + 3;
            ensure(fits && !problem.detail.is_empty(), || format!("{problem:?}"))?;
        }
    } else if answer.content_type == "application/json" && request.method != "HEAD" {
        serde_json::from_slice::<serde_json::Value>(&answer.body).map_err(|error| format!("an answer: {error}"))?;
    }
    Ok(())
}

/// Reads the first answer and removes it from `bytes` (RFC 9112); `None` if there is none.
fn read(bytes: &mut &[u8], method: &str, follows: bool) -> Result<Option<Answer>, String> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    let parsed = response.parse(bytes).map_err(|error| format!("an answer that is not HTTP: {error}"))?;
    let httparse::Status::Complete(head) = parsed else { return Err("half an answer".to_owned()) };
    let status = response.code.unwrap_or(0);
    let get = |name: &str| response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
    let value = |name: &str| get(name).map(|header| lossy(header.value)).unwrap_or_default();
    let (content_type, has_version) = (value("content-type"), get("api-version").is_some());
    let length = value("content-length").parse::<usize>().ok();
    let is_chunked = value("transfer-encoding").eq_ignore_ascii_case("chunked");
    *bytes = &bytes[head..];
    if status == 100 {
        return read(bytes, method, follows);
    }
    let mut body = Vec::new();
    if method == "HEAD" || status == 204 {
        // Neither has a body.
    } else if is_chunked {
        loop {
            let chunk = httparse::parse_chunk_size(bytes).map_err(|_| "a chunk that is not one".to_owned())?;
            let httparse::Status::Complete((head, size)) = chunk else {
                return if follows { Ok(None) } else { Err("half a chunk".to_owned()) };
            };
            let size = usize::try_from(size).unwrap_or(usize::MAX);
            let whole = bytes.get(head..).and_then(|rest| rest.get(..size.checked_add(2)?)).ok_or("half a chunk")?;
            body.extend_from_slice(&whole[..size]);
            *bytes = &bytes[head + size + 2..];
            if size == 0 {
                break;
            }
        }
    } else {
        let length = length.ok_or("an answer without a length")?;
        body = bytes.get(..length).ok_or("half a body")?.to_vec();
        *bytes = &bytes[length..];
    }
    Ok(Some(Answer { status, content_type, body, has_version }))
}

fn request(u: &mut Unstructured<'_>) -> Request {
    if u.rarely(12) {
        let bytes = u.take(200).to_vec();
        return Request {
            bytes,
            method: String::new(),
            operation: None,
            tenant: String::new(),
            is_clean: false,
            follows: false,
            is_over: false,
        };
    }
    let operation = u.pick(OPERATIONS);
    let ((mut target, tenant), mut is_changed) = (path(operation, u), false);
    let query = query(operation, u, &mut is_changed);
    if u.rarely(10) {
        is_changed = true;
        match u.below(5) {
            0 => target.push('/'),
            1 => target = target.replacen('/', "//", 1),
            2 => target.push_str("/x"),
            3 => target = format!("http://d{target}"),
            _ => target = "/".to_owned(),
        }
    }
    target += &query;
    let method = match operation.method {
        Method::Get if u.rarely(8) => "HEAD",
        method => method.as_str(),
    };
    let other = u.rarely(12).then(|| *u.pick(&["GET", "HEAD", "PUT", "POST", "DELETE", "PATCH", "OPTIONS", "X-Y"]));
    is_changed |= other.is_some();
    let method = other.unwrap_or(method).to_owned();
    let over = u.rarely(12).then(|| over_a_bound(operation, u)).flatten();
    let is_over = over.is_some();
    let body = over.unwrap_or_else(|| body(operation, u));
    let (head, is_clean, body) = head(u, body);
    let is_plain = target.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"<>\\^`{|}#".contains(&byte));
    let mut bytes = format!("{method} {target} HTTP/1.1\r\nhost: d\r\n{head}\r\n").into_bytes();
    bytes.extend(body);
    Request {
        bytes,
        operation: (!is_changed).then_some(operation),
        tenant,
        is_clean: is_clean && is_plain,
        is_over,
        follows: target.contains("follow"),
        method,
    }
}

/// A path of an operation, and the tenant in that path.
fn path(operation: &Operation, u: &mut Unstructured<'_>) -> (String, String) {
    const NAMES: [&str; 13] =
        ["acme-1", "acme-2", "b", "%61cme-1", "%ff", "%00", "%2e%2e", "a%2Fb", ".", "-a", "%C3%A4", "%zz", "~"];
    let (mut path, mut tenant) = (operation.path.to_owned(), None);
    while let Some((before, rest)) = path.split_once('{') {
        let after = rest.split_once('}').map_or("", |(_, after)| after);
        let name = match u.below(8) {
            0..4 => "acme-1".to_owned(),
            4 => "a".repeat(60 + u.below(10)),
            _ => (*u.pick(&NAMES)).to_owned(),
        };
        path = format!("{before}{name}{after}");
        tenant.get_or_insert(name);
    }
    (path, tenant.unwrap_or_default())
}

/// Whether the rules of `[[peers]]` allow a uid to call an operation for a tenant.
fn may_call(uid: u32, operation: &Operation, tenant: &str) -> bool {
    match operation.who {
        _ if uid == 0 => true,
        Who::Anybody => true,
        Who::Named => uid != STRANGER,
        Who::Actor => uid == CLIENT && (tenant.starts_with("acme-") || tenant.starts_with("%61cme-")),
        Who::Operator => uid == OPERATOR,
    }
}

fn query(operation: &Operation, u: &mut Unstructured<'_>, is_changed: &mut bool) -> String {
    let mut query = Vec::new();
    for parameter in operation.query {
        if u.flag() || parameter.required {
            let value = match parameter.value {
                ParameterValue::Flag => u.below(3).to_string(),
                ParameterValue::UpTo(most) => u.below(most + 3).to_string(),
                ParameterValue::Text => ["acme-1", "7", "%ff", "a+b", "%20", ""][u.below(6)].to_owned(),
            };
            query.push(format!("{}={value}", parameter.name));
        }
    }
    if u.rarely(10) {
        *is_changed = true;
        query.push(
            ["x=1", "&&", "after", "limit=-1", "replace=1&replace=1", "=", "%", "limit=%ff"][u.below(8)].to_owned(),
        );
    }
    if query.is_empty() { String::new() } else { format!("?{}", query.join("&")) }
}

fn body(operation: &Operation, u: &mut Unstructured<'_>) -> Vec<u8> {
    let text = match operation.request {
        _ if u.rarely(8) => json_value(u, 2),
        None if u.rarely(8) => "unasked".to_owned(),
        None => String::new(),
        Some(Body::LoadRequest | Body::ScriptRequest) if u.rarely(4) => {
            let outbound = if u.rarely(4) { ",\"globalOutbound\":\"x\"" } else { "" };
            format!("{{\"code\":\"()=>{}\"{outbound}}}", u.below(3))
        }
        Some(Body::LoadRequest | Body::ScriptRequest) => load(u),
        Some(Body::RunRequest) => {
            ["", "{}", " ", "{\"args\":[1],\"limits\":{\"cpuMs\":5}}", "{\"props\":[]}"][u.below(5)].to_owned()
        }
        Some(Body::CordonRequest) => {
            let levels = ["\"solo\"", "\"sealed\"", "\"shared\"", "\"expelled\"", "\"out\"", "1"];
            format!(
                "{{\"level\":{},\"reason\":{}}}",
                u.pick(&levels),
                if u.flag() { "\"odd\"".to_owned() } else { written(u) }
            )
        }
        Some(_) => policy(u),
    };
    let mut bytes = if u.rarely(8) { damaged(text.into_bytes(), u) } else { text.into_bytes() };
    if u.rarely(24) {
        bytes.resize(bytes.len() + 20_000 * (1 + u.below(5)), b' ');
    }
    bytes
}

/// A body with one part that is longer than a bound allows, and otherwise right.
fn over_a_bound(operation: &Operation, u: &mut Unstructured<'_>) -> Option<Vec<u8>> {
    let long = |bytes: usize| "x".repeat(bytes + 1);
    let body = match operation.request? {
        Body::LoadRequest | Body::ScriptRequest => match u.below(4) {
            0 => format!("{{\"code\":\"()=>1\",\"limits\":{{{}}}}}", " ".repeat(8192)),
            1 => format!("{{\"code\":\"()=>1\",\"{}\":1}}", long(MAX_DETAIL_BYTES)),
            2 => format!("{{\"mainModule\":\"{}\",\"modules\":{{}}}}", long(8 * MAX_NAME_BYTES)),
            _ => {
                let modules: Vec<_> = (0..=MAX_MODULES).map(|number| format!("\"{number}.js\":\"\"")).collect();
                format!("{{\"mainModule\":\"0.js\",\"modules\":{{{}}}}}", modules.join(","))
            }
        },
        Body::RunRequest => format!("{{\"limits\":{{{}}}}}", " ".repeat(8192)),
        Body::CordonRequest => format!("{{\"level\":\"solo\",\"reason\":\"{}\"}}", long(MAX_REASON_BYTES)),
        _ => format!("{{\"owner\":\"{}\"}}", long(MAX_POLICY_NAME_BYTES as usize)),
    };
    Some(body.into_bytes())
}

fn policy(u: &mut Unstructured<'_>) -> String {
    let entries: Vec<_> = (0..u.below(4))
        .map(|_| match u.below(8) {
            0 => format!("\"limits\":{{\"cpuMs\":{}}}", u.number()),
            1 => format!("\"quota\":{{\"inFlight\":{},\"perSecond\":5}}", u.below(4)),
            2 => "\"allowEval\":true,\"quota\":{\"perSecond\":1,\"burst\":1}".to_owned(),
            3 => format!("\"owner\":{}", written(u)),
            4 => format!("\"trust\":\"{}\"", u.pick(&["trusted", "untrusted", "x"])),
            5 => format!("\"secrets\":[{}]", written(u)),
            6 => "\"allow_eval\":false".to_owned(),
            _ => format!("\"x\":{}", json_value(u, 1)),
        })
        .collect();
    format!("{{{}}}", entries.join(","))
}

/// The headers; whether they are well formed and cannot end the connection; and the body as it is
/// sent.
fn head(u: &mut Unstructured<'_>, body: Vec<u8>) -> (String, bool, Vec<u8>) {
    let mut head = String::new();
    let mut is_clean = true;
    for _ in 0..u.below(3) {
        let line = match u.below(8) {
            0 => "content-type: application/json\r\n".to_owned(),
            1 => format!("x-{}: {}\r\n", u.below(9), "y".repeat(u.below(300))),
            2 => "expect: 100-continue\r\n".to_owned(),
            3 => "accept-encoding: gzip\r\n".to_owned(),
            4 => {
                is_clean = false;
                ["connection: close\r\n", "connection: upgrade\r\nupgrade: h2c\r\n", "host: e\r\n", "a b: c\r\n"]
                    [u.below(4)]
                .to_owned()
            }
            5 => {
                is_clean = false;
                "z: 1\r\n".repeat(60 + u.below(10))
            }
            6 => {
                is_clean = false;
                format!("{}\r\n", lossy(u.take(20)))
            }
            _ => "authorization: x\r\n".to_owned(),
        };
        head.push_str(&line);
    }
    match u.below(10) {
        0 => {
            is_clean = false;
            head.push_str(&format!("content-length: {}\r\n", u.number()));
            (head, is_clean, body)
        }
        1 => {
            is_clean = false;
            head.push_str("transfer-encoding: chunked\r\ncontent-length: 3\r\n");
            (head, is_clean, body)
        }
        2 | 3 => {
            head.push_str("transfer-encoding: chunked\r\n");
            let size = 1 + u.below(64);
            let mut chunks = Vec::new();
            for chunk in body.chunks(size) {
                chunks.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
                chunks.extend_from_slice(chunk);
                chunks.extend(b"\r\n");
            }
            chunks.extend(b"0\r\n\r\n");
            (head, is_clean, chunks)
        }
        _ => {
            head.push_str(&format!("content-length: {}\r\n", body.len()));
            (head, is_clean, body)
        }
    }
}
