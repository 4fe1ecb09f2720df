//! `kvd man`: manual pages, made from the definitions that parse the command line and from the configuration that is
//! installed, so that they cannot say anything else.
//!
//! The pages of commands are clap's, but for what is said below the flags, whose examples must keep their lines.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::CommandFactory as _;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};
use kvd::config::DEFAULT_FILE;

use super::common::say;
use super::failure::{Exit, Failure, Outcome};
use super::{Cli, EXIT_CODES};

const MANUAL: &str = "kvd manual";

/// Write the manual pages
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  kvd man --out /usr/local/share/man     man1/kvd.1, one for each command, man5/kvd.toml.5")]
pub(super) struct Args {
    /// Directory that gets them, in man1 and man5
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

pub(super) fn run(args: &Args) -> Outcome {
    for (name, page) in pages() {
        let section = name.rsplit('.').next().unwrap_or_default();
        let folder = args.out.join(format!("man{section}"));
        let path = folder.join(&name);
        write(&folder, &path, &page)
            .map_err(|source| Failure::Input { what: path.display().to_string(), source })?;
        say(path.display())?;
    }
    Ok(Exit::Done)
}

fn write(folder: &Path, path: &Path, page: &[u8]) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    std::fs::File::create(path)?.write_all(page)
}

/// File names and pages.
fn pages() -> Vec<(String, Vec<u8>)> {
    let mut all = Cli::command().disable_help_subcommand(true);
    all.build();
    let mut pages = vec![("kvd.1".to_owned(), command(&all)), ("kvd.toml.5".to_owned(), configuration())];
    for one in all.get_subcommands().filter(|one| !one.is_hide_set()) {
        pages.push((format!("kvd-{}.1", one.get_name()), command(one)));
    }
    pages
}

fn command(definition: &clap::Command) -> Vec<u8> {
    let is_whole = definition.get_name() == "kvd";
    let version = concat!("kvd ", env!("CARGO_PKG_VERSION"));
    let man = Man::new(definition.clone()).manual(MANUAL).source(version);
    let mut page = Vec::new();
    let mut sections = || {
        man.render_title(&mut page)?;
        man.render_name_section(&mut page)?;
        man.render_synopsis_section(&mut page)?;
        man.render_description_section(&mut page)?;
        man.render_options_section(&mut page)?;
        if is_whole {
            man.render_subcommands_section(&mut page)?;
        }
        let help = definition.get_after_help().map(ToString::to_string).unwrap_or_default();
        let mut roff = Roff::new();
        lay_out(&mut roff, &help);
        if !help.contains("Exit codes:\n") {
            lay_out(&mut roff, EXIT_CODES.split("\n\n").next().unwrap_or_default());
        }
        see_also(&mut roff, if is_whole { "kvd.toml(5)" } else { "kvd(1), kvd.toml(5)" });
        roff.to_writer(&mut page)
    };
    sections().expect("a vector takes everything");
    page
}

/// What a help text says below the flags: paragraphs, under a heading or not, each perhaps with indented lines at its end,
/// which stay as they are.
fn lay_out(roff: &mut Roff, text: &str) {
    let mut section = "";
    for paragraph in text.split("\n\n").filter(|paragraph| !paragraph.is_empty()) {
        let (first, rest) = paragraph.split_once('\n').unwrap_or((paragraph, ""));
        let (heading, lines) = match first {
            "Example:" | "Examples:" => (Some("EXAMPLES"), rest),
            "Exit codes:" => (Some("EXIT STATUS"), rest),
            _ if section.is_empty() || section == "EXAMPLES" => (Some("NOTES"), paragraph),
            _ => (None, paragraph),
        };
        match heading {
            Some(heading) => {
                section = heading;
                roff.control("SH", [heading])
            }
            None => roff.control("PP", []),
        };
        let (verbatim, prose): (Vec<&str>, Vec<&str>) =
            lines.lines().partition(|line| line.starts_with("  "));
        prose.iter().for_each(|line| {
            roff.text([roman(*line)]);
        });
        as_they_are(roff, verbatim.iter().map(|line| &line[2..]));
    }
}

fn as_they_are<'a>(roff: &mut Roff, lines: impl Iterator<Item = &'a str>) {
    let mut lines = lines.peekable();
    if lines.peek().is_none() {
        return;
    }
    roff.control("RS", ["4"]).control("nf", []);
    lines.for_each(|line| {
        roff.text([roman(line)]);
    });
    roff.control("fi", []).control("RE", []);
}

fn see_also(roff: &mut Roff, pages: &str) {
    roff.control("SH", ["SEE ALSO"]).text([roman(pages)]);
}

/// The page about the configuration file is that file, read by its layout: blocks of comment, heading and settings.
fn configuration() -> Vec<u8> {
    let mut roff = Roff::new();
    let version = concat!("kvd ", env!("CARGO_PKG_VERSION"));
    roff.control("TH", ["kvd.toml", "5", "", version, MANUAL]);
    roff.control("SH", ["NAME"]).text([roman("kvd.toml - settings of the kvd daemon")]);
    roff.control("SH", ["DESCRIPTION"]);
    let mut is_begun = false;
    for block in DEFAULT_FILE.split("\n\n") {
        let is_prose = |line: &str| line.starts_with("# ") || line == "#";
        let (prose, said): (Vec<&str>, Vec<&str>) = block.lines().partition(|line| is_prose(line));
        let settings: Vec<&str> = said.iter().filter_map(|line| line.strip_prefix('#')).collect();
        if !said.is_empty() && !std::mem::replace(&mut is_begun, true) {
            roff.control("SH", ["SETTINGS"]);
        }
        if let Some(table) = said.iter().find(|line| line.starts_with('[')) {
            roff.control("SS", [*table]);
        }
        let is_example = settings.iter().any(|line| line.starts_with('['));
        let is_table = settings.len() != said.len();
        if !is_table && !is_example {
            for (at, setting) in settings.iter().enumerate() {
                roff.control(if at == 0 { "TP" } else { "TQ" }, []);
                roff.text([bold(*setting)]);
            }
        }
        for line in prose {
            match line.strip_prefix("# ") {
                Some(text) => roff.text([roman(text)]),
                None => roff.control("PP", []),
            };
        }
        if is_table || is_example {
            as_they_are(&mut roff, settings.into_iter());
        }
    }
    roff.control("SH", ["FILES"]);
    roff.text([roman(
        "/etc/kvd/kvd.toml, or $XDG_CONFIG_HOME/kvd/kvd.toml of the user that runs the daemon",
    )]);
    see_also(&mut roff, "kvd(1), kvd-serve(1), kvd-reload(1)");
    roff.render().into_bytes()
}
