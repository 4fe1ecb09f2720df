//! The command line: one file a command, always `kvd VERB CACHE KEY`.
//!
//! `main` calls [`run`]. A command talks to the daemon through `kv-client` like everybody else; only `serve` is the
//! daemon. Answers go to standard output, everything said about them to standard error, in one line that says what
//! to do.

mod access;
mod backup;
mod caches;
mod check;
mod clear;
mod clients;
mod common;
mod compact;
mod completions;
mod db_dump;
mod delete;
mod describe;
mod doctor;
mod drop;
mod dump;
mod expire;
mod failure;
mod get;
mod increment;
mod lines;
mod load;
mod locks;
mod man;
mod offline;
mod ping;
mod progress;
mod put;
mod reload;
mod restart;
mod restore;
mod rollback;
mod scan;
mod serve;
mod show;
mod slow_log;
mod stats;
mod stop;
mod sync;
mod take;
mod top;
mod version;
mod watch;

use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use common::Common;
use failure::{Exit, Failure};

const EXIT_CODES: &str = "\
Exit codes:
   0  done; found
   1  no such item
   2  wrong usage
   3  a condition did not hold (--if-absent, --if-version), or somebody was faster
   4  refused: no such cache, not allowed, beyond a limit
  69  no daemon answers
  70  the daemon or its disk failed
  78  the daemon cannot start: configuration, lock or store; the message says what to do

Durations are written as 250ms, 90s, 5m, 1h30m; sizes as 4096, 512KiB, 256MiB, 1g.

Examples:
  kvd demo                                   see what it does, in some seconds
  kvd serve                                  start a daemon for this user
  kvd put product 42 rocket --ttl 5m         put an item
  kvd get product 42                         read it
  kvd clear product --stale                  make all of a cache stale, without melting the database
  kvd stats                                  what the daemon does and how fast";

/// Below the help of each command that says nothing of its own about them.
const EXIT_CODES_SHORT: &str = "\
Exit codes: 0 done, 1 no such item, 2 wrong usage, 3 a condition did not hold, 4 refused, 69 no daemon answers, 70 the daemon or
its disk failed, 78 it cannot start.";

/// A transactional key-value cache for all the worker processes of a host.
#[derive(Debug, Parser)]
#[command(
    name = "kvd",
    version,
    long_version = version::LONG.as_str(),
    max_term_width = 100,
    after_help = EXIT_CODES
)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(Box<serve::Args>),
    Stop(stop::Args),
    Restart(restart::Args),
    Reload(reload::Args),
    Get(get::Args),
    Put(put::Args),
    Expire(expire::Args),
    Delete(delete::Args),
    Take(take::Args),
    Increment(increment::Args),
    Describe(describe::Args),
    Scan(scan::Args),
    Clear(clear::Args),
    Drop(drop::Args),
    Backup(backup::Args),
    Restore(restore::Args),
    Check(check::Args),
    Compact(compact::Args),
    Dump(dump::Args),
    Load(load::Args),
    Stats(stats::Args),
    Caches(caches::Args),
    Clients(clients::Args),
    Access(access::Args),
    Locks(locks::Args),
    #[command(name = "slow-log")]
    SlowLog(slow_log::Args),
    Watch(watch::Args),
    Doctor(doctor::Args),
    Top(top::Args),
    Rollback(rollback::Args),
    Sync(sync::Args),
    Ping(ping::Args),
    Completions(completions::Args),
    #[command(hide = true)]
    Man(man::Args),
    Demo(Box<crate::demo::Args>),
}

/// The definitions, with the exit codes below the help of every command, and paragraphs as wide as the terminal.
fn command_line() -> clap::Command {
    Cli::command().mut_subcommands(|command| {
        let mut help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        if !help.contains("Exit codes:") {
            help = format!("{help}\n\n{EXIT_CODES_SHORT}");
        }
        command.after_help(flowing(&help))
    })
}

/// Joins lines that are broken only because source code has a width; indented ones and those before them stay.
fn flowing(text: &str) -> String {
    let mut flowing = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        flowing += line;
        let goes_on = |line: &str| !line.is_empty() && !line.starts_with(' ');
        let is_joined = goes_on(line) && lines.peek().is_some_and(|next| goes_on(next));
        flowing.push(if is_joined { ' ' } else { '\n' });
    }
    flowing
}

/// Parses the command line, runs the command, says what went wrong.
pub(crate) fn run() -> ExitCode {
    let parsed = command_line().try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches));
    let Cli { common, command } = match parsed {
        Ok(cli) => cli,
        // Help and version, also where nothing was said at all.
        Err(said) if !said.use_stderr() || std::env::args_os().len() <= 1 => said.exit(),
        Err(wrong) => {
            eprintln!("kvd: {}", failure::usage(&wrong));
            return Exit::Usage.into();
        }
    };
    let outcome = match command {
        Command::Serve(args) => serve::run(&common, *args),
        Command::Stop(args) => stop::run(&common, &args),
        Command::Restart(args) => restart::run(&common, &args),
        Command::Reload(args) => reload::run(&common, &args),
        Command::Get(args) => get::run(&common, &args),
        Command::Put(args) => put::run(&common, &args),
        Command::Expire(args) => expire::run(&common, &args),
        Command::Delete(args) => delete::run(&common, &args),
        Command::Take(args) => take::run(&common, &args),
        Command::Increment(args) => increment::run(&common, &args),
        Command::Describe(args) => describe::run(&common, &args),
        Command::Scan(args) => scan::run(&common, &args),
        Command::Clear(args) => clear::run(&common, &args),
        Command::Drop(args) => drop::run(&common, &args),
        Command::Backup(args) => backup::run(&common, &args),
        Command::Restore(args) => restore::run(&common, &args),
        Command::Check(args) => check::run(&common, &args),
        Command::Compact(args) => compact::run(&common, &args),
        Command::Dump(args) => dump::run(&common, &args),
        Command::Load(args) => load::run(&common, &args),
        Command::Stats(args) => stats::run(&common, &args),
        Command::Caches(args) => caches::run(&common, &args),
        Command::Clients(args) => clients::run(&common, &args),
        Command::Access(args) => access::run(&common, &args),
        Command::Locks(args) => locks::run(&common, &args),
        Command::SlowLog(args) => slow_log::run(&common, &args),
        Command::Watch(args) => watch::run(&common, &args),
        Command::Doctor(args) => doctor::run(&common, &args),
        Command::Top(args) => top::run(&common, &args),
        Command::Rollback(args) => rollback::run(&common, &args),
        Command::Sync(args) => sync::run(&common, &args),
        Command::Ping(args) => ping::run(&common, &args),
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => man::run(&args),
        Command::Demo(args) => return crate::demo::run(*args, common.json),
    };
    match outcome {
        Ok(exit) => exit.into(),
        // Whoever reads our output has seen enough, as `head` does.
        Err(Failure::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => Exit::Done.into(),
        Err(failure) => {
            eprintln!("kvd: {failure}");
            failure.exit().into()
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::error::ErrorKind as Kind;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_explains_itself_shows_an_example_and_how_it_ends() {
        let mut all = command_line();
        all.build();
        for command in all.get_subcommands_mut().filter(|command| command.get_name() != "help") {
            let name = command.get_name().to_owned();
            let help = command.render_long_help().to_string();
            assert!(help.contains(&format!("kvd {name}")), "kvd {name} --help shows no example");
            assert!(help.contains("Exit codes:"), "kvd {name} --help does not say how it ends");
            assert!(command.get_about().is_some(), "kvd {name} is not explained");
        }
    }

    /// What stands in code in the document: whole blocks, and between single backticks.
    fn code_of(document: &str) -> Vec<String> {
        let mut code = Vec::new();
        for (at, part) in document.split("```").enumerate() {
            if at % 2 == 0 {
                let inline = part.split('`').skip(1).step_by(2);
                code.extend(inline.map(|words| words.replace('\n', " ").replace("NUMBER", "1")));
            } else if part.starts_with("console") || part.starts_with("sh\n") {
                let is_session = part.starts_with("console");
                let commands = part.lines().skip(1).filter_map(|line| {
                    if is_session { line.strip_prefix("$ ") } else { line.split(" #").next() }
                });
                code.extend(commands.map(str::to_owned));
            }
        }
        code
    }

    #[test]
    fn every_command_in_the_operations_manual_is_one() {
        let mut seen = std::collections::BTreeSet::new();
        for line in code_of(include_str!("../../../docs/OPERATIONS.md")) {
            for command in line.split(['|', '&', ';', '>']) {
                let words: Vec<&str> = command.split_whitespace().collect();
                let Some(at) = words.iter().rposition(|word| *word == "kvd") else { continue };
                let words = &words[at..];
                let Some(name) = words.get(1) else { continue };
                if let Err(error) = Cli::command().try_get_matches_from(words) {
                    let is_meant = match error.kind() {
                        Kind::DisplayVersion => true,
                        // The text names a command.
                        Kind::MissingRequiredArgument => words.len() == 2,
                        _ => false,
                    };
                    assert!(is_meant, "docs/OPERATIONS.md: {}: {error}", words.join(" "));
                }
                seen.insert((*name).to_owned());
            }
        }
        // Those for looking after a daemon; items one by one are for `--help`.
        for name in [
            "access", "backup", "caches", "check", "clear", "clients", "compact", "doctor", "dump", "load",
            "locks", "ping", "reload", "restart", "restore", "rollback", "scan", "serve", "slow-log",
            "stats", "stop", "sync", "top", "watch",
        ] {
            assert!(seen.contains(name), "docs/OPERATIONS.md shows no `kvd {name}`");
        }
    }
}
