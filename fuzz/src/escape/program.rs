//! An attacker's program: a list of operations. Each operation is one statement of a script.
//!
//! Operations are values, so that they can be mutated, dropped one by one, and counted by class.
//! They name things such as a victim's page or the attacker's channel. The script that runs them
//! (`prelude.js`) finds the addresses, because these differ from process to process.

use std::borrow::Cow;
use std::fmt::Write;

use serde::{Deserialize, Serialize};

/// The beginning of every attacker's script.
const PRELUDE: &str = include_str!("prelude.js");

/// An argument of a system call, or an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Arg {
    /// A number as it is.
    Word(u64),
    /// The address at this offset in a buffer of the attacker's own.
    Own(u16),
    /// The page where that buffer begins.
    OwnPage,
    /// The attacker's stack.
    OwnStack,
    /// The attacker's channel.
    Channel,
    /// The attacker's thread.
    Thread,
    /// An address on an island: how many islands away, and how many GiB after the island's start.
    Near(i8, u16),
    /// An address in the gap of an island: how many islands away.
    Gap(i8),
    /// A fact that the victim with this number reported: the address of a secret, its channel, or
    /// its thread.
    Victim(u8, Fact),
    /// The page of such an address.
    VictimPage(u8, Fact),
    /// The frozen page, which says which keys and which island later threads get.
    Frozen,
    /// A path, written into the attacker's buffer.
    Path(u8),
    /// A vector of one element that points to the inner address.
    Vector(Box<Self>),
    /// The lower half of the inner argument, with other bits in the upper half.
    Junk(Box<Self>),
}

/// The facts that a victim reports about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fact {
    Buffer,
    Resizable,
    Text,
    Object,
    Array,
    Planted,
    Channel,
    Thread,
}

impl Fact {
    /// The facts that are addresses of secrets.
    pub const SECRETS: [Self; 6] =
        [Self::Buffer, Self::Resizable, Self::Text, Self::Object, Self::Array, Self::Planted];

    /// The fact's name in the victim's answer.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Buffer => "buffer",
            Self::Resizable => "resizable",
            Self::Text => "text",
            Self::Object => "object",
            Self::Array => "array",
            Self::Planted => "planted",
            Self::Channel => "channel",
            Self::Thread => "thread",
        }
    }
}

/// How many paths there are.
pub const PATHS: u8 = 6;

impl Arg {
    /// The expression in a script.
    #[must_use]
    pub fn script(&self) -> String {
        match self {
            Self::Word(word) => format!("{word}n"),
            Self::Own(offset) => format!("(O + {offset}n)"),
            Self::OwnPage => "page(O)".to_owned(),
            Self::OwnStack => "K".to_owned(),
            Self::Channel => "C".to_owned(),
            Self::Thread => "T".to_owned(),
            Self::Near(islands, gib) => format!("near({islands}n, {gib}n)"),
            Self::Gap(islands) => format!("gap({islands}n)"),
            Self::Victim(which, fact) => format!("v({which}, '{}')", fact.name()),
            Self::VictimPage(which, fact) => format!("page(v({which}, '{}'))", fact.name()),
            Self::Frozen => "(attack.frozen() + 24n)".to_owned(),
            Self::Path(which) => format!("path({which})"),
            Self::Vector(inner) => format!("vector({})", inner.script()),
            Self::Junk(inner) => format!("junk({})", inner.script()),
        }
    }

    /// The class of the argument. Coverage and the generator's memory distinguish only classes.
    #[must_use]
    pub fn class(&self) -> &'static str {
        match self {
            Self::Word(0) => "0",
            Self::Word(u64::MAX) => "-1",
            Self::Word(word) if *word < 16 => "few",
            Self::Word(word) if word.is_power_of_two() => "bit",
            Self::Word(word) if *word <= u64::from(u32::MAX) => "int",
            Self::Word(_) => "long",
            Self::Own(_) => "own",
            Self::OwnPage => "page",
            Self::OwnStack => "stack",
            Self::Channel => "channel",
            Self::Thread => "thread",
            Self::Near(..) => "near",
            Self::Gap(_) => "gap",
            Self::Victim(_, Fact::Channel) => "channel of another",
            Self::Victim(_, Fact::Thread) => "thread of another",
            Self::Victim(..) => "secret",
            Self::VictimPage(..) => "page of another",
            Self::Frozen => "frozen",
            Self::Path(_) => "path",
            Self::Vector(_) => "vector",
            Self::Junk(_) => "junk",
        }
    }

    /// Whether the argument names something of another tenant.
    #[must_use]
    pub fn is_anothers(&self) -> bool {
        match self {
            Self::Near(..) | Self::Gap(_) | Self::Victim(..) | Self::VictimPage(..) => true,
            Self::Vector(inner) | Self::Junk(inner) => inner.is_anothers(),
            _ => false,
        }
    }
}

/// One operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// A system call by the 64-bit table.
    Call {
        number: u64,
        args: Vec<Arg>,
    },
    /// A system call by the 32-bit table.
    Call32 {
        number: u64,
        args: Vec<Arg>,
    },
    Load {
        at: Arg,
    },
    Store {
        at: Arg,
    },
    /// Writes PKRU, by the instruction, by the worker's gate or by a forged signal frame. After the
    /// gate, a load follows.
    Keys {
        way: Way,
        value: u32,
        at: Arg,
    },
    /// Bytes on the attacker's own channel, or on another's.
    Frame {
        to: Arg,
        bytes: Vec<u8>,
    },
    /// A call of a function that is reached from the global object, by its number in that search.
    Native {
        number: u32,
        construct: bool,
        this: String,
        args: Vec<String>,
    },
    /// A statement of the language, and its class.
    Language {
        class: Cow<'static, str>,
        text: String,
    },
}

/// How a thread writes PKRU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Way {
    Instruction,
    Gate,
    Frame,
}

impl Op {
    /// The statement in a script.
    #[must_use]
    pub fn script(&self) -> String {
        let list = |args: &[Arg]| args.iter().fold(String::new(), |text, arg| text + ", " + &arg.script());
        match self {
            Self::Call { number, args } => format!("attack.syscall({number}n{})", list(args)),
            Self::Call32 { number, args } => format!("attack.syscall32({number}n{})", list(args)),
            Self::Load { at } => format!("load({})", at.script()),
            Self::Store { at } => format!("store({})", at.script()),
            Self::Keys { way: Way::Instruction, value, .. } => format!("(attack.wrpkru({value}n), console.log('x'))"),
            Self::Keys { way: Way::Gate, value, at } => format!("gate({value}n, {})", at.script()),
            Self::Keys { way: Way::Frame, value, .. } => format!("attack.sigreturn({value}n)"),
            Self::Frame { to, bytes } => format!("frame({}, {bytes:?})", to.script()),
            Self::Native { number, construct, this, args } => {
                format!("native({number}, {construct}, {this}, [{}])", args.join(", "))
            }
            Self::Language { text, .. } => text.clone(),
        }
    }

    /// The class of the operation. Coverage counts pairs of class and result.
    #[must_use]
    pub fn class(&self) -> String {
        let list = |args: &[Arg]| args.iter().map(Arg::class).collect::<Vec<_>>().join(",");
        match self {
            Self::Call { number, args } => format!("call {number} {}", list(args)),
            Self::Call32 { number, args } => format!("call32 {number} {}", list(args)),
            Self::Load { at } => format!("load {}", at.class()),
            Self::Store { at } => format!("store {}", at.class()),
            Self::Keys { way, .. } => format!("keys {way:?}"),
            Self::Frame { to, bytes } => format!("frame {} {}", to.class(), bytes.len().min(8)),
            // The result names the function.
            Self::Native { .. } => "native".to_owned(),
            Self::Language { class, .. } => class.clone().into_owned(),
        }
    }

    /// The kind for which the generator remembers whether it ends the process: a call's number with
    /// the class of its first argument, or the class of another operation.
    #[must_use]
    pub fn kind(&self) -> String {
        match self {
            Self::Call { number, args } => format!("{number} {}", args.first().map_or("", Arg::class)),
            Self::Language { .. } | Self::Native { .. } => "language".to_owned(),
            other => other.class(),
        }
    }

    /// The kind without the argument. It stands in for a kind that was not tried yet.
    #[must_use]
    pub fn wide_kind(&self) -> String {
        match self {
            Self::Call { number, .. } => format!("{number} any"),
            Self::Call32 { .. } => "any call32".to_owned(),
            other => format!("any {}", other.kind()),
        }
    }
}

/// A program, and how its runs are requested.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Program {
    pub ops: Vec<Op>,
    /// If 0, the program is run once by `load`. Otherwise it is registered and run this often, so
    /// that its isolate is kept between these runs.
    pub kept_runs: u8,
}

impl Program {
    /// The script, which is an ES module.
    #[must_use]
    pub fn script(&self) -> String {
        let mut text = PRELUDE.to_owned();
        text.push_str("export default async (s, env, ctx) => {\nconst { out, step } = begin(s, env, ctx);\n");
        for (number, op) in self.ops.iter().enumerate() {
            let _ = writeln!(text, "await step({number}, () => {});", op.script());
        }
        text.push_str("return ended(out);\n}\n");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_argument_that_names_another_tenants_memory_is_recognised() {
        let secret = Arg::Victim(0, Fact::Buffer);
        assert!(Arg::Vector(Box::new(secret.clone())).is_anothers() && Arg::Junk(Box::new(secret)).is_anothers());
        assert!(!Arg::Own(3).is_anothers() && !Arg::Channel.is_anothers());
    }
}
