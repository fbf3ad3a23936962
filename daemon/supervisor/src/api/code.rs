//! The code of a request, from JSON to the frame that a worker gets, without a copy in between:
//! only the body, the frame, and modules decoded from base64 are held.

use std::collections::BTreeSet;

use base64::Engine;
use enisle_wire::tenant::{CodeOf, EnvOf, InputOf, ModuleKind, ModuleOf, ToTenantOf};
use enisle_wire::{MAX_ARGS_BYTES, MAX_ENV_BYTES, MAX_MODULES, MAX_NAME_BYTES, MAX_TO_TENANT_BYTES, append};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use super::problem::Problem;
use crate::json_text::{BadObject, Text, entries, fields};
use crate::tenants::policy::Policy;
use enisle_wire::limits::RequestedLimits;

/// A value as the client wrote it, if there is one.
pub(super) type Written<'a> = Option<&'a RawValue>;

/// The longest name, with every byte written as an escape.
const MOST_WRITTEN_NAME_BYTES: usize = 6 * MAX_NAME_BYTES + 2;
/// Limits are a handful of numbers.
const MAX_LIMITS_BYTES: usize = 4096;

impl From<BadObject> for Problem {
    fn from(error: BadObject) -> Self {
        Self::bad_request(match error {
            BadObject::NotAnObject => "the body must be a JSON object".to_owned(),
            error => error.to_string(),
        })
    }
}

/// One or several frames of a run, one after another.
#[derive(Debug, Default)]
pub(super) struct Frames(Vec<u8>);

impl Frames {
    /// Appends a frame, and returns its range.
    fn push<T: Serialize, B: Serialize>(
        &mut self,
        frame: &ToTenantOf<T, B>,
    ) -> Result<std::ops::Range<usize>, Problem> {
        let begin = self.0.len();
        let frames = append(std::mem::take(&mut self.0), frame, MAX_TO_TENANT_BYTES);
        self.0 = frames.map_err(|error| Problem::too_large(error.to_string()))?;
        Ok(begin..self.0.len())
    }

    pub(super) fn push_input(
        &mut self,
        args: Written<'_>,
        props: Written<'_>,
    ) -> Result<std::ops::Range<usize>, Problem> {
        let args = json("args", args, "[]", '[', "an array", MAX_ARGS_BYTES)?;
        let props = json("props", props, "{}", '{', "an object", MAX_ARGS_BYTES)?;
        self.push(&ToTenantOf::<_, &[u8]>::Input(InputOf { args, props }))
    }

    pub(super) fn push_env(&mut self, env: Written<'_>) -> Result<std::ops::Range<usize>, Problem> {
        let json = json("env", env, "{}", '{', "an object", MAX_ENV_BYTES)?;
        self.push(&ToTenantOf::<_, &[u8]>::Env(EnvOf { json }))
    }

    pub(super) fn push_code(&mut self, code: CodeOf<Text<'_>, Source<'_>>) -> Result<std::ops::Range<usize>, Problem> {
        self.push(&ToTenantOf::Code(code))
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// One JSON value, passed on as the client wrote it; `otherwise` if there is none.
fn json<'a>(
    what: &str,
    value: Written<'a>,
    otherwise: &'static str,
    first: char,
    kind: &str,
    cap: usize,
) -> Result<&'a str, Problem> {
    let text = value.map_or(otherwise, RawValue::get);
    if text.len() > cap {
        return Err(Problem::too_large(format!("{what} has {} bytes; at most {cap} are allowed", text.len())));
    }
    if !text.starts_with(first) {
        return Err(Problem::bad_request(format!("{what} must be {kind}")));
    }
    Ok(text)
}

/// The limits that a request asks for.
pub(super) fn requested_limits(written: Written<'_>) -> Result<RequestedLimits, Problem> {
    let wrong = |error: String| Problem::bad_request(format!("limits{error}"));
    let limits: RequestedLimits = match written.map(RawValue::get) {
        None => RequestedLimits::default(),
        Some(text) if text.len() > MAX_LIMITS_BYTES => {
            return Err(wrong(format!(" has {} bytes; at most {MAX_LIMITS_BYTES} are allowed", text.len())));
        }
        Some(text) if !text.starts_with('{') => return Err(wrong(" must be an object".to_owned())),
        Some(text) => serde_json::from_str(text).map_err(|error| wrong(format!(": {error}")))?,
    };
    limits.check().map_err(|error| wrong(format!(".{error}")))?;
    Ok(limits)
}

/// A name, if one was given.
pub(super) fn name(what: &str, written: Written<'_>) -> Result<Option<String>, Problem> {
    written.map(|written| checked_name(what, written)).transpose()
}

fn checked_name(what: &str, written: &RawValue) -> Result<String, Problem> {
    let text = written.get();
    let bounds = format!("it must have 1 to {MAX_NAME_BYTES} bytes and no control characters");
    if text.len() > MOST_WRITTEN_NAME_BYTES {
        return Err(Problem::bad_request(format!("{what} has {} bytes; {bounds}", text.len())));
    }
    let name = Text::of(written).map_err(|error| Problem::bad_request(format!("{what}: {error}")))?.to_string();
    if name.is_empty() || name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control) {
        let begin = name.chars().take(100).collect::<String>();
        return Err(Problem::bad_request(format!("{what} is {begin:?}; {bounds}")));
    }
    Ok(name)
}

/// The body of a module: a text or JSON as the request has it, or bytes that were decoded from
/// base64.
#[derive(Debug)]
pub(super) enum Source<'a> {
    Text(Text<'a>),
    Json(&'a str),
    Data(Vec<u8>),
}

impl Source<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Json(text) => text.len(),
            Self::Data(bytes) => bytes.len(),
        }
    }
}

/// Every form is serialised as bytes.
impl Serialize for Source<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Text(text) => text.serialize(serializer),
            Self::Json(text) => serializer.serialize_str(text),
            Self::Data(bytes) => serializer.serialize_bytes(bytes),
        }
    }
}

/// The code of a request, which has one of two forms.
pub(super) fn code<'a>(
    short: Written<'a>,
    main: Written<'a>,
    modules: Written<'a>,
    policy: &Policy,
    limits: &RequestedLimits,
) -> Result<CodeOf<Text<'a>, Source<'a>>, Problem> {
    let cap = limits.code_bytes.unwrap_or(u32::MAX).min(policy.limits.code_bytes) as usize;
    match (short, main, modules) {
        (Some(source), None, None) => {
            let source = Text::of(source).map_err(|error| Problem::bad_request(format!("code: {error}")))?;
            if source.len() > cap { Err(too_large(source.len(), cap)) } else { Ok(CodeOf::Short(source)) }
        }
        (None, Some(main), Some(written)) => {
            let main = checked_name("mainModule", main)?;
            let modules = read_modules(written, cap)?;
            match modules.iter().find(|module| module.name == main).map(|module| module.kind) {
                Some(ModuleKind::Js) => Ok(CodeOf::Modules { main, modules }),
                Some(_) => Err(Problem::bad_request(format!("the main module {main:?} is not JavaScript"))),
                None => Err(Problem::bad_request(format!("mainModule is {main:?}, and modules has no such name"))),
            }
        }
        (Some(_), _, _) => Err(Problem::bad_request("give either code, or mainModule and modules, not both")),
        (None, Some(_), None) => Err(Problem::bad_request("mainModule requires modules")),
        (None, None, Some(_)) => {
            Err(Problem::bad_request("modules requires mainModule, the name of the module to run first"))
        }
        (None, None, None) => Err(Problem::bad_request("there is no script: give code, or mainModule and modules")),
    }
}

fn too_large(bytes: usize, cap: usize) -> Problem {
    Problem::too_large(format!("the code has {bytes} bytes; at most {cap} are allowed (limits.codeBytes)"))
}

fn read_modules(written: &RawValue, cap: usize) -> Result<Vec<ModuleOf<Source<'_>>>, Problem> {
    let (mut modules, mut names, mut bytes) = (Vec::new(), BTreeSet::new(), 0);
    let mut one = |name: &RawValue, value| {
        if modules.len() == MAX_MODULES {
            return Err(Problem::too_large(format!("there are more than {MAX_MODULES} modules")));
        }
        let module = module(name, value, cap)?;
        // A name that appears twice is an error; the last module does not silently win.
        if !names.insert(module.name.clone()) {
            return Err(Problem::bad_request(format!("module {:?} appears twice", module.name)));
        }
        bytes += module.body.len();
        if bytes > cap {
            return Err(too_large(bytes, cap));
        }
        modules.push(module);
        Ok(())
    };
    let mut problem = None;
    let read = entries(written.get().as_bytes(), |name, value| {
        one(name, value).map_err(|found| {
            problem = Some(found);
            String::new()
        })
    });
    if let Some(problem) = problem {
        return Err(problem);
    }
    read.map_err(|error| Problem::bad_request(format!("modules, an object from names to modules: {error}")))?;
    Ok(modules)
}

fn module<'a>(name: &RawValue, value: &'a RawValue, cap: usize) -> Result<ModuleOf<Source<'a>>, Problem> {
    let name = checked_name("the name of a module", name)?;
    let wrong = |error: String| Problem::bad_request(format!("module {name:?}: {error}"));
    let text = |value: &'a RawValue| Text::of(value).map_err(|error| wrong(error.to_string()));
    let (kind, body) = match value.get().as_bytes().first() {
        Some(b'"') => (kind_by_ending(&name)?, Source::Text(text(value)?)),
        Some(b'{') => match fields(value.get().as_bytes(), ["js", "json", "text", "data"]) {
            Ok([Some(js), None, None, None]) => (ModuleKind::Js, Source::Text(text(js)?)),
            Ok([None, Some(json), None, None]) => (ModuleKind::Json, Source::Json(json.get())),
            Ok([None, None, Some(plain), None]) => (ModuleKind::Text, Source::Text(text(plain)?)),
            Ok([None, None, None, Some(data)]) => {
                let data = text(data)?;
                // Base64 has four characters for three bytes.
                if data.len() / 4 > cap.div_ceil(3) {
                    return Err(too_large(data.len() / 4 * 3, cap));
                }
                let base64 = base64::engine::general_purpose::STANDARD;
                let bytes = match data.plain() {
                    Some(plain) => base64.decode(plain),
                    None => base64.decode(data.to_string()),
                };
                let bytes = bytes.map_err(|error| wrong(format!("its data is not base64: {error}")))?;
                (ModuleKind::Data, Source::Data(bytes))
            }
            Ok(_) => return Err(wrong("it must have exactly one of js, json, text, data".to_owned())),
            Err(error) => return Err(wrong(error.to_string())),
        },
        _ => {
            return Err(wrong(
                "a module must be a string, or an object with exactly one of js, json, text, data".to_owned(),
            ));
        }
    };
    Ok(ModuleOf { name, kind, body })
}

/// The kind of a module that was given as a string.
fn kind_by_ending(name: &str) -> Result<ModuleKind, Problem> {
    match name.rsplit_once('.').map(|(_, ending)| ending) {
        Some("js" | "mjs") => Ok(ModuleKind::Js),
        Some("json") => Ok(ModuleKind::Json),
        Some("txt") => Ok(ModuleKind::Text),
        Some("ts" | "tsx" | "jsx") => Err(Problem::bad_request(format!(
            "module {name:?}: TypeScript and JSX are not run; compile it to JavaScript first"
        ))),
        Some("wasm") => Err(Problem::bad_request(format!("module {name:?}: WebAssembly is not run"))),
        _ => Err(Problem::bad_request(format!(
            "module {name:?} is a string, so its name must end in .js, .mjs, .json or .txt; or name its kind: {{\"js\": …}}"
        ))),
    }
}
