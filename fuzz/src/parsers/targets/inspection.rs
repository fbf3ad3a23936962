//! The inspection of a worker, by the text of its files in `/proc`.
//!
//! Attacked: `hardening::verify`, by the files of a good worker with one fault put in, by names and
//! mappings that a worker chooses, and by damaged text. Oracle: nothing is reported of a good
//! worker. Each fault is reported for the layer that it belongs to, unless the worker is planned
//! without that layer.

use std::fs::File;

use arbitrary::Unstructured;
use enisle_hardening::jail::Plan;
use enisle_hardening::verify::{Expected, Texts, judge};
use enisle_hardening::{Layer, LayerSet};
use nix::sys::resource::{Resource, getrlimit};

use crate::parsers::draw::{Draw, damaged, ensure, same};

/// The lowest `oom_score_adj` that a worker may have.
const OOM_SCORE: i32 = 500;

/// The files of a worker that agrees with its plan.
fn good(u: &mut Unstructured<'_>, plan: &Plan, uid: u32, gid: u32) -> Texts {
    // The kernel escapes line breaks and backslashes in a name.
    let name = u.text(2).replace('\\', "\\\\").replace('\n', "\\n");
    let filters = 2 + u32::from(plan.layers.has(Layer::SealedFilter));
    let status = |pid: usize, filters: u32| {
        format!(
            "Name:\t{name}\nPid:\t{pid}\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\nGid:\t{gid}\t{gid}\t{gid}\t{gid}\n\
             CapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t0000000000000000\n\
             CapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t{filters}\n\
             Speculation_Store_Bypass:\tthread force mitigated\nSpeculationIndirectBranch:\tconditional force disabled\n"
        )
    };
    let core = getrlimit(Resource::RLIMIT_CORE).map_or(1, |(_, hard)| hard.min(1));
    let limits = format!(
        "Limit                     Soft Limit           Hard Limit           Units     \n\
         Max file size             0                    0                    bytes     \n\
         Max data size             {0}                  {0}                  bytes     \n\
         Max core file size        0                    {core}               bytes     \n\
         Max processes             {1}                  {1}                  processes \n\
         Max open files            {2}                  {2}                  files     \n",
        plan.data_bytes, plan.threads, plan.descriptors
    );
    let maps = format!(
        "55e0-55f0 r-xp 00000000 08:01 77 /worker\n7f00-7f10 rw-p 00000000 00:00 0 [anon:{name}]\n\
         7f20-7f30 r-xp 00000000 00:00 0                          [vdso]\n"
    );
    Texts {
        status: status(1, filters),
        limits,
        oom_score: format!("{}\n", OOM_SCORE + i32::try_from(u.below(500)).unwrap_or(0)),
        mountinfo: "21 20 0:30 / / ro,nosuid,nodev,noexec - tmpfs enisle ro\n".to_owned(),
        environ: Vec::new(),
        maps,
        threads: (0..u.below(4)).map(|thread| status(thread, filters + 3)).collect(),
    }
}

fn replace(text: &mut String, from: &str, to: &str) {
    *text = text.replacen(from, to, 1);
}

/// Puts one fault into a worker's files. Returns the layer that the fault belongs to, if it belongs
/// to one.
fn spoil(texts: &mut Texts, u: &mut Unstructured<'_>, plan: &Plan) -> Option<Layer> {
    match u.below(8) {
        0 | 1 => Some(spoil_status(&mut texts.status, u, plan)),
        2 => Some(spoil_limits(texts, u)),
        3 => {
            let mounts = [
                "",
                "21 20 0:30 / / rw - tmpfs enisle rw\n",
                "21 20 0:30 / / ro - tmpfs other ro\n",
                "21 20 0:30 / /x ro - tmpfs enisle ro\n",
                "21 20 0:30 / / ro - tmpfs enisle ro\n22 21 0:31 / /proc ro - proc proc ro\n",
            ];
            texts.mountinfo = (*u.pick(&mounts)).to_owned();
            Some(Layer::EmptyRoot)
        }
        4 => {
            let made = [
                "7f00-7f10 rwxp 00000000 00:00 0 \n",
                "7f00-7f10 r-xp 00000000 00:00 0 [anon:[vdso]]\n",
                "7f00-7f10 rwxp 00000000 08:01 77 /worker\n",
                "7f00-7f10 --xp 00000000 00:00 0 [heap]\n",
            ];
            let at = if u.flag() { 0 } else { texts.maps.len() };
            texts.maps.insert_str(at, made[u.below(4)]);
            Some(Layer::DenyWriteExecute)
        }
        5 => {
            texts.threads.push(bare_thread(u, plan));
            Some(Layer::Seccomp)
        }
        6 => {
            let id = ["Uid", "Gid"][u.below(2)];
            let line = texts.status.lines().find(|line| line.starts_with(id)).unwrap_or_default().to_owned();
            let (at, mut ids) = (1 + u.below(4), line.split('\t').map(str::to_owned).collect::<Vec<_>>());
            ids[at] = ["0", "-1", "", "4294967295"][u.below(4)].to_owned();
            replace(&mut texts.status, &line, &ids.join("\t"));
            None
        }
        _ => {
            texts.environ = [&b"A=1\0"[..], b"\0", b"="][u.below(3)].to_vec();
            None
        }
    }
}

fn spoil_status(status: &mut String, u: &mut Unstructured<'_>, plan: &Plan) -> Layer {
    match u.below(3) {
        0 => {
            // Without root or a user namespace, a worker cannot empty the bounding set, so the set
            // is not checked.
            let bounded = plan.layers.has(Layer::Namespaces) || nix::unistd::geteuid().is_root();
            let set = ["CapInh", "CapPrm", "CapEff", "CapAmb", "CapBnd"][u.below(4 + usize::from(bounded))];
            let bits = ["0000000000000001", "", "ffffffffffffffff", "none", "0x0"][u.below(5)];
            replace(status, &format!("{set}:\t0000000000000000"), &format!("{set}:\t{bits}"));
            Layer::Capabilities
        }
        1 => {
            let other = ["NoNewPrivs:\t0", "NoNewPrivs:\t11", "nonewprivs:\t1"][u.below(3)];
            replace(status, "NoNewPrivs:\t1", other);
            Layer::NoNewPrivileges
        }
        _ => {
            let (name, forced) = *u.pick(&[
                ("Speculation_Store_Bypass", "thread force mitigated"),
                ("SpeculationIndirectBranch", "conditional force disabled"),
            ]);
            let free = ["thread vulnerable", "conditional enabled", "thread mitigated"][u.below(3)];
            replace(status, &format!("{name}:\t{forced}"), &format!("{name}:\t{free}"));
            Layer::Speculation
        }
    }
}

fn spoil_limits(texts: &mut Texts, u: &mut Unstructured<'_>) -> Layer {
    if u.flag() {
        texts.oom_score = ["499\n", "-1000\n", "", "x", "500 500\n"][u.below(5)].to_owned();
    } else {
        let names = ["Max core file size", "Max file size", "Max open files", "Max processes", "Max data size"];
        let name = *u.pick(&names);
        let line = texts.limits.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
        let hard = ["unlimited", "12345678901", "-1", ""][u.below(4)];
        replace(&mut texts.limits, &line, &format!("{name}  0 {hard} bytes"));
    }
    Layer::Rlimits
}

/// The `status` of a thread with too few filters, or in another seccomp mode.
fn bare_thread(u: &mut Unstructured<'_>, plan: &Plan) -> String {
    let mut filters = 2 + usize::from(plan.layers.has(Layer::SealedFilter));
    let mut mode = "2";
    if u.flag() {
        mode = ["0", "1", "22"][u.below(3)];
    } else {
        filters = u.below(2);
    }
    format!("Pid:\t9\nSeccomp:\t{mode}\nSeccomp_filters:\t{filters}\n")
}

pub(in crate::parsers) fn inspection(u: &mut Unstructured<'_>) -> Result<(), String> {
    let layers: LayerSet = Layer::ALL.into_iter().filter(|_| !u.rarely(4)).collect();
    // Half of the workers have every layer.
    let layers = if u.flag() { layers } else { LayerSet::all() };
    let plan = Plan::for_tenants(layers, u.number() >> 1, u32::try_from(1 + u.below(12)).unwrap_or(1));
    let program = File::open("/proc/self/exe").map_err(|error| error.to_string())?;
    let (uid, gid) = (1 + u.small() / 2, 1 + u.small() / 2);
    let expected = Expected { plan: &plan, program: &program, uid, gid, control_inode: 3, stderr_inode: 2 };
    let mut texts = good(u, &plan, uid, gid);
    same(&format!("{texts:?}"), &judge(&texts, &expected), &Vec::new())?;
    match u.below(3) {
        0 => {
            let bytes = damaged(std::mem::take(&mut texts.status).into_bytes(), u);
            texts.status = String::from_utf8_lossy(&bytes).into_owned();
            texts.limits = String::from_utf8_lossy(u.rest()).into_owned();
            let _ = judge(&texts, &expected);
            Ok(())
        }
        _ => {
            let layer = spoil(&mut texts, u, &plan);
            let found: Vec<_> = judge(&texts, &expected).into_iter().map(|finding| finding.layer).collect();
            let should = layer.is_none_or(|layer| layers.has(layer));
            // A thread with too few filters also lacks the filter of a sealed worker.
            let also = |found: &Option<Layer>| *found == layer || *found == Some(Layer::SealedFilter);
            ensure(found.contains(&layer) == should && found.iter().all(also), || {
                format!("{layer:?} is wrong with {texts:?} of {plan:?}: {found:?}")
            })
        }
    }
}
