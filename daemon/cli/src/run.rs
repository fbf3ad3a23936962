//! `enisle run FILE` and `enisle load -`: send a script, print its console and its result.

use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;
use enisle_api::client::Client;
use enisle_api::types::policy::RequestedLimits;
use enisle_api::types::run::{Answer, Call, LoadRequest};
use enisle_api::types::script::{Module, ScriptRequest, TypedModule};
use enisle_wire::Outcome;
use serde_json::{Map, Value};

use crate::standalone::Private;
use crate::{Failure, segment, show};

#[derive(Debug, Args)]
pub(crate) struct RunFile {
    /// A JavaScript file: a module, or one function expression.
    file: PathBuf,
    /// The tenant to run it for.
    #[arg(long, default_value = "default")]
    tenant: String,
    /// One entry of `env`; the value is JSON if it parses as JSON, otherwise text.
    #[arg(long = "env", value_name = "K=V")]
    env: Vec<String>,
    /// One argument, as JSON.
    #[arg(long = "arg", value_name = "JSON")]
    args: Vec<String>,
    /// The export to call.
    #[arg(long, value_name = "NAME")]
    entrypoint: Option<String>,
    /// The method to call.
    #[arg(long, value_name = "NAME")]
    method: Option<String>,
    #[arg(long, value_name = "N")]
    cpu_ms: Option<u32>,
    #[arg(long, value_name = "N")]
    wall_ms: Option<u32>,
    #[arg(long, value_name = "N")]
    memory_mb: Option<u32>,
    /// Start a private daemon for this one run.
    #[arg(long)]
    standalone: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LoadFile {
    /// The request: a file, or `-`.
    file: PathBuf,
    /// The tenant to run it for.
    #[arg(long, default_value = "default")]
    tenant: String,
    /// Start a private daemon for this one run.
    #[arg(long)]
    standalone: bool,
}

pub(crate) async fn file(command: RunFile, client: Client, as_json: bool) -> Result<u8, Failure> {
    let source = read(&command.file)?;
    // The file's own name, so that errors show it.
    let name =
        command.file.file_name().map_or_else(|| "main.js".to_owned(), |name| name.to_string_lossy().into_owned());
    let mut script = ScriptRequest {
        env: Some(environment(&command.env)?),
        limits: Some(RequestedLimits {
            cpu_ms: command.cpu_ms,
            wall_ms: command.wall_ms,
            memory_mb: command.memory_mb,
            ..RequestedLimits::default()
        }),
        ..ScriptRequest::default()
    };
    if is_module(&source) {
        script.modules = Some([(name.clone(), Module::Typed(TypedModule::Js(source)))].into());
        script.main_module = Some(name);
    } else {
        script.code = Some(source);
    }
    let args = Some(arguments(&command.args)?);
    let call = Call { entrypoint: command.entrypoint, method: command.method, args, props: None };
    let request = serde_json::to_string(&LoadRequest { script, call });
    let request = request.map_err(|error| Failure::Usage(format!("this is not a valid request: {error}")))?;
    send(&request, &command.tenant, command.standalone, client, as_json).await
}

/// A guess, which decides only the name under which errors show the file: the daemon takes both
/// forms as `code`.
fn is_module(source: &str) -> bool {
    source.lines().any(|line| line.starts_with("export ") || line.starts_with("export{"))
}

pub(crate) async fn request(command: LoadFile, client: Client, as_json: bool) -> Result<u8, Failure> {
    let request = read(&command.file)?;
    send(&request, &command.tenant, command.standalone, client, as_json).await
}

async fn send(request: &str, tenant: &str, standalone: bool, client: Client, as_json: bool) -> Result<u8, Failure> {
    let path = format!("/v1/tenants/{}/load", segment(tenant)?);
    let body = request.as_bytes().to_vec();
    let answer = if standalone {
        let private = Private::start().await.map_err(Failure::Standalone)?;
        private.client().post(&path, body).await?
    } else {
        client.post(&path, body).await?
    };
    let ran: Answer = answer.read()?;
    if as_json {
        show::json(&answer)?;
    } else {
        show::answer(&ran);
    }
    Ok(exit_code(ran.outcome))
}

fn exit_code(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::Ok => 0,
        Outcome::Exception | Outcome::Canceled => 1,
        Outcome::ExceededCpu | Outcome::ExceededWall | Outcome::ExceededMemory | Outcome::ExceededOutput => 4,
        Outcome::Violation => 5,
        Outcome::WorkerLost | Outcome::InternalError => 70,
    }
}

fn read(file: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let read = if file == Path::new("-") {
        std::io::stdin().read_to_string(&mut text).map(drop)
    } else {
        std::fs::read_to_string(file).map(|read| text = read)
    };
    read.map_err(|error| Failure::Usage(format!("{} cannot be read: {error}", file.display())))?;
    Ok(text)
}

fn arguments(args: &[String]) -> Result<Vec<Value>, Failure> {
    let parse = |text: &String| {
        serde_json::from_str(text)
            .map_err(|error| Failure::Usage(format!("--arg {text}: {error}; text needs quotes: '\"text\"'")))
    };
    args.iter().map(parse).collect()
}

fn environment(entries: &[String]) -> Result<Map<String, Value>, Failure> {
    let parse = |entry: &String| {
        let (key, value) =
            entry.split_once('=').ok_or_else(|| Failure::Usage(format!("--env {entry}: it must be K=V")))?;
        let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
        Ok((key.to_owned(), value))
    };
    entries.iter().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_env_that_parse_as_json_are_json() {
        let env = environment(&["a=1".into(), "b=x=y".into(), "c={\"d\":2}".into()]).unwrap();
        assert_eq!(Value::from(env), serde_json::json!({"a": 1, "b": "x=y", "c": {"d": 2}}));
    }

    #[test]
    fn every_outcome_has_the_exit_code_that_the_readme_gives_it() {
        let readme = include_str!("../../../README.md");
        let table = readme.split("\n| outcome |").nth(1).unwrap().split("\n\n").next().unwrap();
        let mut seen = 0;
        for row in table.lines().skip(2) {
            let cells: Vec<_> = row.split('|').map(str::trim).collect();
            for outcome in cells[1].split('`').skip(1).step_by(2) {
                let known = Outcome::ALL.into_iter().find(|known| known.as_str() == outcome).unwrap();
                assert_eq!(exit_code(known).to_string(), cells[3], "{outcome}");
                seen += 1;
            }
        }
        assert_eq!(seen, 10);
    }
}
