//! `kvd doctor`: what is wrong with this machine, this store and its daemon, and what to do about it.
//!
//! Works with the daemon down: then it looks at what the next start would meet. It looks only: nothing is created, repaired or
//! waited for longer than `--timeout`. `place` looks at configuration, files and locks, `host` at the machine, `daemon` asks it.

mod daemon;
mod host;
mod place;

use std::path::PathBuf;

use kvd::config::{Config, Sources};
use serde_json::{Value, json};

use super::common::{Common, say};
use super::failure::{Exit, Outcome};

/// Find out what is wrong, and what to do: configuration, limits, disk, memory, kernel, locks, clients
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kvd doctor
  kvd doctor --config /etc/kvd/kvd.toml      as the daemon of this configuration is started
  kvd doctor --json | jq -r '.[] | select(.level == \"error\") | .what'

Works with the daemon down, too. Say --config or --dir as the daemon is told, else what a start without them would use is looked
at. As another user than the daemon's some things cannot be seen; that is said.

Exit codes:
  0  all is well; notes do not count
  1  there are warnings
  2  there are errors, or wrong usage")]
pub(super) struct Args {
    /// The configuration file of the daemon. Else the one that KVD_CONFIG names, or a standard one
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The directory of the daemon's store
    #[arg(long)]
    dir: Option<String>,
    /// Show only what is not well
    #[arg(long)]
    quiet: bool,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Ok,
    /// Could be better; nobody has to do anything.
    Note,
    Warning,
    Error,
}

impl Level {
    fn label(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Note => "note",
            Level::Warning => "warning",
            Level::Error => "error",
        }
    }
}

/// Something that was looked at.
#[derive(Debug)]
struct Finding {
    level: Level,
    area: &'static str,
    what: String,
    /// What to do about it.
    cure: Option<String>,
}

/// What was found so far.
#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn ok(&mut self, area: &'static str, what: impl Into<String>) {
        self.0.push(Finding { level: Level::Ok, area, what: what.into(), cure: None });
    }

    fn add(&mut self, level: Level, area: &'static str, what: impl Into<String>, cure: impl Into<String>) {
        self.0.push(Finding { level, area, what: what.into(), cure: Some(cure.into()) });
    }

    fn worst(&self) -> Level {
        self.0.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok)
    }
}

pub(super) fn run(common: &Common, args: &Args) -> Outcome {
    let mut findings = Findings::default();
    let config = configuration(common, args, &mut findings);
    let running = daemon::look(common, &mut findings);
    let holder = config.as_ref().and_then(|config| place::look(config, running.is_some(), &mut findings));
    host::look(config.as_ref(), running.as_ref(), holder, &mut findings);
    report(common, args, &findings)?;
    Ok(match findings.worst() {
        Level::Ok | Level::Note => Exit::Done,
        // The codes 1 and 2, which mean other things after other commands.
        Level::Warning => Exit::NotFound,
        Level::Error => Exit::Usage,
    })
}

fn configuration(common: &Common, args: &Args, findings: &mut Findings) -> Option<Config> {
    let socket = common.socket.as_ref().map(|socket| ("socket", socket.display().to_string()));
    let dir = args.dir.clone().map(|dir| ("dir", dir));
    let sources = Sources::process(args.config.clone(), socket.into_iter().chain(dir).collect());
    match Config::load(&sources) {
        Ok(config) => {
            let (dir, caches) = (config.dir.display(), config.caches.len());
            findings.ok("configuration", format!("valid: store in {dir}, {caches} caches declared"));
            Some(config)
        }
        Err(error) => {
            let cure = "correct it: the daemon does not start with it; the store is not looked at";
            findings.add(Level::Error, "configuration", error.to_string().replace('\n', " "), cure);
            None
        }
    }
}

fn report(common: &Common, args: &Args, findings: &Findings) -> Result<(), super::failure::Failure> {
    let shown = || findings.0.iter().filter(|finding| !args.quiet || finding.level > Level::Ok);
    if common.json {
        let rows = shown().map(|finding| {
            json!({
                "level": finding.level.label(),
                "area": finding.area,
                "what": finding.what,
                "do": finding.cure,
            })
        });
        return say(Value::Array(rows.collect()));
    }
    for finding in shown() {
        say(format_args!("{:<8} {:<14} {}", finding.level.label(), finding.area, finding.what))?;
        if let Some(cure) = &finding.cure {
            say(format_args!("{:<23} -> {cure}", ""))?;
        }
    }
    let count = |level| findings.0.iter().filter(|finding| finding.level == level).count();
    say(match (count(Level::Error), count(Level::Warning)) {
        (0, 0) => "all is well".to_owned(),
        (errors, warnings) => format!("{errors} errors, {warnings} warnings"),
    })
}
