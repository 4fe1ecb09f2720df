//! `kvd sync`: makes what was written durable.

use super::common::Common;
use super::failure::{Exit, Outcome};

/// Wait until everything written so far survives power loss
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  kvd sync && echo safe")]
pub(super) struct Args {}

pub(super) fn run(common: &Common, _args: &Args) -> Outcome {
    common.client()?.sync()?;
    Ok(Exit::Done)
}
