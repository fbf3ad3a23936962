//! A script's modules: compiled, linked and imported by exact name. A script can import its own
//! modules and two built-in ones, and nothing else.

use std::collections::HashMap;
use std::ffi::c_char;
use std::num::NonZeroI32;
use std::sync::Arc;

use enisle_wire::tenant::{Advice, Code, Module, ModuleKind};

use super::memory::{confinement, quota};
use super::values::throw;
use crate::watchdog::Watched;

/// The built-in modules, which export `WorkerEntrypoint`. The first has the name that code for
/// Cloudflare's Dynamic Workers imports.
const BUILT_IN: [&str; 2] = ["cloudflare:workers", "enisle:workers"];

/// The name of the one module in the short form of code (`Code::Short`).
pub(super) const SHORT_NAME: &str = "main.js";

/// The modules of one run.
#[derive(Debug)]
pub(in crate::engine) struct Modules {
    sources: HashMap<String, Source>,
    compiled: HashMap<String, v8::Global<v8::Module>>,
    /// The names of compiled modules by V8's hash of the module, which is not unique.
    names: HashMap<NonZeroI32, Vec<(v8::Global<v8::Module>, String)>>,
    /// The export of the built-in modules.
    worker_entrypoint: v8::Global<v8::Value>,
}

/// The source of one module.
#[derive(Debug, Clone)]
struct Source {
    kind: ModuleKind,
    /// V8 may use the same bytes, so that a large source exists only once.
    body: Arc<[u8]>,
    /// Whether the source is compiled as an expression, in a module that exports its value.
    expression: bool,
}

impl Modules {
    /// Splits a run's code into modules. Returns them with the main module's name.
    pub(super) fn new(code: Code, worker_entrypoint: v8::Global<v8::Value>) -> (Self, String) {
        let (main, modules) = match code {
            Code::Modules { main, modules } => (main, modules),
            Code::Short(source) => {
                let main = Module { name: SHORT_NAME.to_owned(), kind: ModuleKind::Js, body: source.into_bytes() };
                (SHORT_NAME.to_owned(), vec![main])
            }
        };
        let sources = modules
            .into_iter()
            .map(|Module { name, kind, body }| (name, Source { kind, body: body.into(), expression: false }))
            .collect();
        (Self { sources, compiled: HashMap::new(), names: HashMap::new(), worker_entrypoint }, main)
    }

    /// The name under which a module was compiled.
    fn name_of(&self, hash: NonZeroI32, module: &v8::Global<v8::Module>) -> Option<&str> {
        self.names.get(&hash)?.iter().find(|(known, _)| known == module).map(|(_, name)| name.as_str())
    }

    /// From now on the source in the short form counts as an expression: it is compiled in a module
    /// that exports its value. Returns the module that was compiled before.
    pub(super) fn wrap_expression(&mut self) -> Option<v8::Global<v8::Module>> {
        if let Some(source) = self.sources.get_mut(SHORT_NAME) {
            source.expression = true;
            let of_no_use = |byte: &u8| byte.is_ascii_whitespace() || *byte == b';';
            let end = source.body.iter().rposition(|byte| !of_no_use(byte)).map_or(0, |last| last + 1);
            if end < source.body.len() {
                source.body = source.body[..end].into();
            }
        }
        self.compiled.remove(SHORT_NAME)
    }

    /// The source was not an expression after all: puts back the module that was compiled before.
    pub(super) fn unwrap_expression(&mut self, statement: v8::Global<v8::Module>) {
        self.compiled.insert(SHORT_NAME.to_owned(), statement);
    }
}

/// Compiles the module `name`, once. `line_offset` shifts the positions that errors show.
///
/// `None` means that an exception is pending.
pub(super) fn compile<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    name: &str,
    line_offset: i32,
) -> Option<v8::Local<'s, v8::Module>> {
    let modules = scope.get_slot::<Modules>()?;
    if let Some(known) = modules.compiled.get(name) {
        let known = known.clone();
        return Some(v8::Local::new(scope, known));
    }
    let module = if BUILT_IN.contains(&name) && !modules.sources.contains_key(name) {
        synthetic(scope, name, "WorkerEntrypoint", evaluate_built_in)?
    } else {
        let source = modules.sources.get(name)?.clone();
        match source.kind {
            ModuleKind::Js => {
                let text = source.text(scope).or_else(|| {
                    throw(scope, v8::Exception::range_error, "the module is longer than a string can be")
                })?;
                let resource = v8::String::new(scope, name)?.into();
                let origin =
                    v8::ScriptOrigin::new(scope, resource, line_offset, 0, false, 0, None, false, false, true, None);
                let mut source = v8::script_compiler::Source::new(text, Some(&origin));
                v8::script_compiler::compile_module(scope, &mut source)?
            }
            ModuleKind::Json | ModuleKind::Text | ModuleKind::Data => synthetic(scope, name, "default", evaluate_data)?,
        }
    };
    let global = v8::Global::new(scope, module);
    let modules = scope.get_slot_mut::<Modules>()?;
    modules.names.entry(module.get_identity_hash()).or_default().push((global.clone(), name.to_owned()));
    modules.compiled.insert(name.to_owned(), global);
    Some(module)
}

/// From this size on an ASCII text stays outside V8's heap: inside, it would count against the heap
/// limit each time the worker compiles it, and an expression is compiled twice.
const OUTSIDE_FROM_BYTES: usize = 64 << 10;

/// A module's text as a string of V8.
fn text_of<'s>(scope: &v8::PinScope<'s, '_>, body: &Arc<[u8]>) -> Option<v8::Local<'s, v8::String>> {
    if body.len() < OUTSIDE_FROM_BYTES || !body.is_ascii() {
        return v8::String::new_from_utf8(scope, body, v8::NewStringType::Normal);
    }
    let (bytes, length) = (Arc::into_raw(Arc::clone(body)), body.len());
    // SAFETY: the bytes are ASCII, and live until V8 calls `give_back`, once, which releases the
    // reference that was taken here.
    let text = unsafe { v8::String::new_external_onebyte_raw(scope, bytes.cast_mut().cast(), length, give_back) };
    if text.is_none() {
        // SAFETY: V8 has not taken the reference.
        drop(unsafe { Arc::from_raw(bytes) });
    }
    text
}

/// V8 no longer needs a string that [`text_of`] made.
unsafe extern "C" fn give_back(bytes: *mut c_char, length: usize) {
    let bytes = std::ptr::slice_from_raw_parts(bytes.cast::<u8>(), length);
    // SAFETY: pointer and length are those of the reference that `text_of` gave to V8.
    drop(unsafe { Arc::from_raw(bytes) });
}

impl Source {
    /// The text that V8 compiles.
    fn text<'s>(&self, scope: &mut v8::PinScope<'s, '_>) -> Option<v8::Local<'s, v8::String>> {
        let text = text_of(scope, &self.body)?;
        if !self.expression {
            return Some(text);
        }
        let (before, after) = (v8::String::new(scope, "export default (\n")?, v8::String::new(scope, "\n)")?);
        let begun = v8::String::concat(scope, before, text)?;
        v8::String::concat(scope, begun, after)
    }
}

fn synthetic<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    name: &str,
    export: &str,
    steps: impl v8::MapFnTo<v8::SyntheticModuleEvaluationSteps<'s>>,
) -> Option<v8::Local<'s, v8::Module>> {
    let name = v8::String::new(scope, name)?;
    let export = v8::String::new(scope, export)?;
    Some(v8::Module::create_synthetic_module(scope, name, &[export], steps))
}

/// Finds the module that one `import` names, when V8 asks for it.
fn lookup<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    importer: &str,
    specifier: &str,
    attribute: Option<String>,
) -> Option<v8::Local<'s, v8::Module>> {
    let modules = scope.get_slot::<Modules>()?;
    let kind = modules.sources.get(specifier).map(|module| module.kind);
    if kind.is_none() && !BUILT_IN.contains(&specifier) {
        if let Some(advice) = scope.get_slot_mut::<Advice>() {
            advice.imports = advice.imports.saturating_add(1);
        }
        let modules = scope.get_slot::<Modules>()?;
        let near = ["./", "/"].iter().find_map(|prefix| {
            let bare = specifier.strip_prefix(prefix)?;
            modules.sources.contains_key(bare).then(|| format!("; there is one named {bare:?}"))
        });
        let text = format!(
            "{importer} imports {specifier:?}, and no module has that name: modules are imported by their exact name{}",
            near.unwrap_or_default()
        );
        return throw(scope, v8::Exception::error, &text);
    }
    match attribute {
        None => {}
        Some(word) if word == "json" && kind == Some(ModuleKind::Json) => {}
        Some(word) => {
            let text = format!("{importer} imports {specifier:?} with type {word:?}, which that module does not have");
            return throw(scope, v8::Exception::type_error, &text);
        }
    }
    compile(scope, specifier, 0)
}

/// The import attribute `type`, if there is one. Each attribute takes `step` entries of the array.
fn type_attribute(
    scope: &v8::PinScope<'_, '_>,
    attributes: v8::Local<'_, v8::FixedArray>,
    step: usize,
) -> Option<String> {
    (0..attributes.length()).step_by(step).find_map(|at| {
        let text = |index| -> Option<String> {
            let value = attributes.get(scope, index)?.try_cast::<v8::Value>().ok()?;
            Some(value.to_rust_string_lossy(scope))
        };
        (text(at)? == "type").then(|| text(at + 1))?
    })
}

/// Links a module to its imports.
pub(super) fn resolve<'s>(
    context: v8::Local<'s, v8::Context>,
    specifier: v8::Local<'s, v8::String>,
    attributes: v8::Local<'s, v8::FixedArray>,
    referrer: v8::Local<'s, v8::Module>,
) -> Option<v8::Local<'s, v8::Module>> {
    confinement::edge();
    // SAFETY: V8 calls this on the thread that has entered the isolate of `context`.
    v8::callback_scope!(unsafe scope, context);
    let specifier = specifier.to_rust_string_lossy(scope);
    let attribute = type_attribute(scope, attributes, 3);
    let hash = referrer.get_identity_hash();
    let referrer = v8::Global::new(scope, referrer);
    // While it links, V8 runs no code of the script, and so does not notice that the run was ended.
    if scope.get_slot::<Arc<Watched>>()?.cause().is_some() {
        return throw(scope, v8::Exception::error, "the run was ended");
    }
    let importer = scope.get_slot::<Modules>()?.name_of(hash, &referrer).unwrap_or("a module").to_owned();
    lookup(scope, &importer, &specifier, attribute)
}

/// `import(…)`: a promise of the module's namespace.
pub(super) fn import_dynamically<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    _options: v8::Local<'s, v8::Data>,
    resource: v8::Local<'s, v8::Value>,
    specifier: v8::Local<'s, v8::String>,
    attributes: v8::Local<'s, v8::FixedArray>,
) -> Option<v8::Local<'s, v8::Promise>> {
    confinement::edge();
    let attribute = match type_attribute(scope, attributes, 2) {
        Some(word) => v8::String::new(scope, &word)?.into(),
        None => v8::undefined(scope).into(),
    };
    // The import is not carried out now: a module that is being evaluated may import itself, and V8
    // ends the process on a nested evaluation. A job of its own carries the import out after the
    // current job, as the language specifies.
    let what = v8::Array::new_with_elements(scope, &[resource, specifier.into(), attribute]);
    let later = v8::Function::builder(import_later).data(what.into()).build(scope)?;
    let resolver = v8::PromiseResolver::new(scope)?;
    let now = v8::undefined(scope).into();
    resolver.resolve(scope, now)?;
    resolver.get_promise(scope).then(scope, later)
}

/// The job that carries out an `import(…)`. An exception in it rejects the promise that the script
/// got.
fn import_later<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    args: v8::FunctionCallbackArguments<'s>,
    mut rv: v8::ReturnValue<'s>,
) {
    let Ok(what) = args.data().try_cast::<v8::Array>() else { return };
    let text = |index| -> Option<String> {
        let value = what.get_index(scope, index)?;
        (!value.is_undefined()).then(|| value.to_rust_string_lossy(scope))
    };
    let (importer, specifier, attribute) = (text(0).unwrap_or_default(), text(1).unwrap_or_default(), text(2));
    if let Some(module) = lookup(scope, &importer, &specifier, attribute)
        && let Some(promise) = evaluated_namespace(scope, module)
    {
        rv.set(promise.into());
    }
}

/// Links and evaluates a module. The promise yields the module's namespace, after top-level
/// `await`.
fn evaluated_namespace<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    module: v8::Local<'s, v8::Module>,
) -> Option<v8::Local<'s, v8::Promise>> {
    module.instantiate_module(scope, resolve)?;
    let evaluated = module.evaluate(scope)?.try_cast::<v8::Promise>().ok()?;
    let namespace = module.get_module_namespace();
    let handler = v8::Function::builder(return_data).data(namespace).build(scope)?;
    evaluated.then(scope, handler)
}

fn return_data<'s>(_: &mut v8::PinScope<'s, '_>, args: v8::FunctionCallbackArguments<'s>, mut rv: v8::ReturnValue<'s>) {
    rv.set(args.data());
}

/// Sets the one export of a JSON, text or data module.
fn evaluate_data<'s>(
    context: v8::Local<'s, v8::Context>,
    module: v8::Local<'s, v8::Module>,
) -> Option<v8::Local<'s, v8::Value>> {
    // SAFETY: V8 calls this on the thread that has entered the isolate of `context`.
    v8::callback_scope!(unsafe scope, context);
    let (hash, global) = (module.get_identity_hash(), v8::Global::new(scope, module));
    let modules = scope.get_slot::<Modules>()?;
    let name = modules.name_of(hash, &global)?.to_owned();
    let source = modules.sources.get(&name)?;
    let value: v8::Local<'_, v8::Value> = match source.kind {
        ModuleKind::Data => {
            let bytes = Arc::clone(&source.body);
            // V8 ends the process if a buffer that the host makes is refused, so the room is
            // checked first.
            if !quota::has_room(bytes.len()) {
                let text = format!("{name} does not fit the run's memory (limits.memoryMb)");
                return throw(scope, v8::Exception::range_error, &text);
            }
            let store = v8::ArrayBuffer::new_backing_store(scope, bytes.len()).make_shared();
            store.iter().zip(bytes.iter()).for_each(|(place, byte)| place.set(*byte));
            v8::ArrayBuffer::with_backing_store(scope, &store).into()
        }
        ModuleKind::Json | ModuleKind::Text | ModuleKind::Js => {
            let kind = source.kind;
            let text = text_of(scope, &source.body)?;
            if kind == ModuleKind::Json { parse_json(scope, &name, text)? } else { text.into() }
        }
    };
    let export = v8::String::new(scope, "default")?;
    module.set_synthetic_module_export(scope, export, value)?;
    Some(v8::undefined(scope).into())
}

/// Parses a JSON module. An error contains the module's name.
fn parse_json<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    name: &str,
    text: v8::Local<'s, v8::String>,
) -> Option<v8::Local<'s, v8::Value>> {
    let problem = {
        v8::tc_scope!(let caught, scope);
        if let Some(value) = v8::json::parse(caught, text) {
            return Some(value);
        }
        caught.exception().map(|exception| exception.to_rust_string_lossy(caught)).unwrap_or_default()
    };
    throw(scope, v8::Exception::syntax_error, &format!("the module {name} is not JSON: {problem}"))
}

fn evaluate_built_in<'s>(
    context: v8::Local<'s, v8::Context>,
    module: v8::Local<'s, v8::Module>,
) -> Option<v8::Local<'s, v8::Value>> {
    // SAFETY: V8 calls this on the thread that has entered the isolate of `context`.
    v8::callback_scope!(unsafe scope, context);
    let class = scope.get_slot::<Modules>()?.worker_entrypoint.clone();
    let class = v8::Local::new(scope, class);
    let export = v8::String::new(scope, "WorkerEntrypoint")?;
    module.set_synthetic_module_export(scope, export, class)?;
    Some(v8::undefined(scope).into())
}
