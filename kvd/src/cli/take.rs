//! `kvd take`: reads and deletes in one.

use serde_json::Value;

use super::common::{Common, Place, say};
use super::failure::{Exit, Outcome};
use super::get::{missing, print_value};
use super::show;

/// Show the value of an item and delete it, in one step
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  kvd take token 8c1f             only one of many callers gets it")]
pub(super) struct Args {
    #[command(flatten)]
    place: Place,
    /// Print the value's bytes and nothing else, not even a line break
    #[arg(long, conflicts_with = "json")]
    raw: bool,
}

pub(super) fn run(common: &Common, args: &Args) -> Outcome {
    let key = args.place.key()?;
    let Some(value) = common.cache(&args.place.cache)?.take(&key)? else { return missing(&args.place) };
    if common.json {
        let mut object = serde_json::Map::new();
        show::put_bytes(&mut object, "key", &key);
        show::put_bytes(&mut object, "value", &value);
        say(Value::Object(object))?;
    } else {
        print_value(&value, args.raw)?;
    }
    Ok(Exit::Done)
}
