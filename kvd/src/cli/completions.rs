//! `kvd completions`: what a shell needs to complete this command line.

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::Cli;
use super::common::say_raw;
use super::failure::{Exit, Outcome};

/// Print completions for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kvd completions bash > ~/.local/share/bash-completion/completions/kvd
  kvd completions zsh > \"${fpath[1]}/_kvd\"
  kvd completions fish > ~/.config/fish/completions/kvd.fish")]
pub(super) struct Args {
    shell: Shell,
}

pub(super) fn run(args: &Args) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "kvd", &mut script);
    say_raw(&script).map(|()| Exit::Done)
}
