//! `bench locking`: ways for processes to share items that change, side by side, with real processes.
//!
//! `bin/bench` calls [`run`]. In reading order: `plan` says what is run, `turns` in which order, `hosts` prepares the
//! stores, `crew` has the child processes, [`worker`] is one of them, `value` is what it writes; `storm` and `trials` are
//! about processes that are killed or stopped; `figures` puts together what came out, `report` and `page` print it;
//! `mechanisms` has a file for each thing that is compared: to add one, add a file and its line there.

mod crew;
mod figures;
mod hosts;
mod mechanisms;
mod page;
mod plan;
mod report;
mod storm;
mod trials;
mod turns;
mod value;
pub mod worker;

use std::sync::atomic::AtomicBool;

use mechanisms::Mechanism;
pub use plan::{Extent, Plan};
pub use report::{Baseline, Report};
use turns::Lab;

use crate::BenchError;
use crate::machine::Machine;
use crate::peers::Places;

/// The trials, as `--only` calls them.
const STOPPED: &str = "stopped";
const SURVIVORS: &str = "survivors";

/// What is asked for.
#[derive(Debug)]
pub struct Order<'a> {
    /// What is run.
    pub plan: Plan,
    /// Only these loads; all if it is empty.
    pub only: &'a [String],
    /// Only these mechanisms; all if it is empty.
    pub mechanisms: &'a [String],
    /// Where the programs are.
    pub places: &'a Places,
    /// Chooses keys and victims.
    pub seed: u64,
    /// Set when somebody pressed Ctrl-C.
    pub interrupted: &'a AtomicBool,
    /// How to have it again.
    pub command: String,
}

/// Runs everything.
///
/// # Errors
/// When something is asked for that is not there, or the parent's own work fails. Whatever happens to a mechanism is
/// part of the report.
pub fn run(order: &Order<'_>) -> Result<Report, BenchError> {
    let machine = Machine::look();
    let names: Vec<&str> = mechanisms::ALL.iter().map(|mechanism| mechanism.name()).collect();
    refuse_unknown("mechanism", order.mechanisms, &names)?;
    let cells = order.plan.cells.iter().map(|cell| cell.name.as_str());
    let cells: Vec<&str> = cells.chain(order.plan.trials.iter().flat_map(|_| [STOPPED, SURVIVORS])).collect();
    refuse_unknown("load", order.only, &cells)?;
    let is_wanted = |wanted: &[String], name: &str| wanted.is_empty() || wanted.iter().any(|one| one == name);
    let mut lab = Lab {
        places: order.places,
        seed: order.seed,
        interrupted: order.interrupted,
        mechanisms: Vec::new(),
        skipped: Vec::new(),
        hosts: Vec::new(),
    };
    let mut versions = Vec::new();
    for mechanism in mechanisms::ALL.into_iter().filter(|one| is_wanted(order.mechanisms, one.name())) {
        match version(mechanism, order.places) {
            Ok(version) => {
                versions.push((mechanism.name(), version));
                lab.mechanisms.push(mechanism);
            }
            Err(why) => lab.skipped.push((mechanism.name(), why)),
        }
    }
    let mut outcomes = Vec::new();
    for cell in order.plan.cells.iter().filter(|cell| is_wanted(order.only, &cell.name)) {
        lab.prepare(cell)?;
        lab.forget_skipped();
        outcomes.push(lab.run(&order.plan, cell)?);
    }
    let trials = |name| order.plan.trials.filter(|_| is_wanted(order.only, name));
    let stopped = trials(STOPPED).map_or(Ok(Vec::new()), |trials| trials::stop(&mut lab, trials))?;
    lab.hosts.clear();
    let survivals = trials(SURVIVORS).map_or(Ok(Vec::new()), |trials| trials::storm(&lab, trials))?;
    Ok(Report {
        bench: "locking",
        command: order.command.clone(),
        machine,
        profile: order.plan.profile.clone(),
        settings: lab.mechanisms.iter().map(|one| (one.name(), one.about().settings)).collect(),
        versions,
        skipped: lab.skipped,
        goals: report::goals(&outcomes),
        outcomes,
        stopped,
        survivals,
        baseline: None,
    })
}

fn version(mechanism: &dyn Mechanism, places: &Places) -> Result<String, String> {
    match mechanism.locking() {
        Some(_) => crate::peers::Kind::Kvd.version(places),
        None => mechanism.version(),
    }
}

fn refuse_unknown(what: &str, wanted: &[String], there: &[&str]) -> Result<(), BenchError> {
    match wanted.iter().find(|wanted| !there.contains(&wanted.as_str())) {
        None => Ok(()),
        Some(unknown) => Err(BenchError::Server {
            server: "bench locking",
            what: format!("no {what} {unknown:?}; there are {}", there.join(", ")),
        }),
    }
}
