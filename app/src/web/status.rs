//! `/metrics` for Prometheus, and `/status` for people: what all workers counted, with plots.

use std::fmt::Write as _;

use axum::response::Response;
use minijinja::{Value, context};

use super::asked::Asked;
use super::{Shop, answers, private};
use crate::counts::{BUCKETS, Counts, RouteCounts, bound_us};
use crate::faults::Fault;
use crate::metrics::Route;
use crate::visit::{Kind, Visit};

/// Kinds that are objects, and not made of them.
pub(crate) const OBJECTS: [Kind; 4] = [Kind::Description, Kind::Price, Kind::Inventory, Kind::List];

/// In Prometheus' text format.
pub(super) async fn metrics(shop: &Shop) -> Response {
    let text = exposition(&shop.metrics.all().await).expect("a string takes everything");
    answers::text(text)
}

fn exposition(counts: &Counts) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    writeln!(
        text,
        "# HELP shop_request_seconds How long requests took.\n# TYPE shop_request_seconds histogram"
    )?;
    for (route, counted) in Route::ALL.iter().zip(&counts.routes) {
        let (name, mut sum) = (route.name(), 0);
        for (bucket, count) in counted.buckets.iter().enumerate() {
            sum += count;
            let bound = bound_us(bucket) as f64 / 1e6;
            writeln!(text, "shop_request_seconds_bucket{{route=\"{name}\",le=\"{bound}\"}} {sum}")?;
        }
        writeln!(text, "shop_request_seconds_bucket{{route=\"{name}\",le=\"+Inf\"}} {sum}")?;
        writeln!(text, "shop_request_seconds_sum{{route=\"{name}\"}} {}", counted.took_us as f64 / 1e6)?;
        writeln!(text, "shop_request_seconds_count{{route=\"{name}\"}} {sum}")?;
    }
    let by_route = |text: &mut String, name: &str, help: &str, of: fn(&RouteCounts) -> u64| {
        writeln!(text, "# HELP {name} {help}\n# TYPE {name} counter")?;
        Route::ALL.iter().zip(&counts.routes).try_for_each(|(route, counted)| {
            writeln!(text, "{name}{{route=\"{}\"}} {}", route.name(), of(counted))
        })
    };
    by_route(&mut text, "shop_failures_total", "Requests answered by an error of ours.", |route| {
        route.failures
    })?;
    by_route(
        &mut text,
        "shop_queries_total",
        "Database queries made to show something; what forms write is not counted.",
        |route| route.queries,
    )?;
    for (name, help, loaded) in [
        ("shop_objects_asked_total", "Objects that were wanted.", false),
        ("shop_objects_loaded_total", "Objects that no cache had.", true),
    ] {
        writeln!(text, "# HELP {name} {help}\n# TYPE {name} counter")?;
        for (kind, counted) in Kind::ALL.iter().zip(&counts.objects) {
            writeln!(
                text,
                "{name}{{kind=\"{}\"}} {}",
                kind.name(),
                if loaded { counted.1 } else { counted.0 }
            )?;
        }
    }
    for (name, help, count) in [
        ("shop_throttled_total", "Requests refused by the throttle.", counts.throttled),
        ("shop_retries_conflict_total", "Units of work repeated after a conflict.", counts.conflicts_retried),
        ("shop_retries_lost_total", "Units of work repeated after a lost connection.", counts.losses_retried),
    ] {
        writeln!(text, "# HELP {name} {help}\n# TYPE {name} counter\n{name} {count}")?;
    }
    Ok(text)
}

/// For people.
pub(super) async fn page(shop: &Shop, asked: &Asked, visit: &Visit) -> Result<Response, Fault> {
    let counts = shop.metrics.all().await;
    private::show(shop, asked, visit, "status.html", async |_| Ok(content(&counts))).await
}

fn content(counts: &Counts) -> Value {
    let route = |(route, counted): (&Route, &RouteCounts)| {
        context! {
            name => route.name(), requests => counted.requests, failures => counted.failures,
            p50 => milliseconds(counted.percentile_us(50)), p99 => milliseconds(counted.percentile_us(99)),
            queries => match route {
                Route::Form => "–".to_owned(),
                _ => format!("{:.3}", counted.queries as f64 / counted.requests.max(1) as f64),
            },
            bars => bars(counted),
        }
    };
    let seen = Route::ALL.iter().zip(&counts.routes).filter(|(_, counted)| counted.requests > 0);
    let object = |kind: &Kind| {
        let per_mille = counts.hits_per_mille(&[*kind])?;
        let asked = counts.objects[*kind as usize].0;
        Some(
            context! { name => kind.name(), asked, percent => format!("{:.1}", per_mille as f64 / 10.0), width => per_mille / 5 },
        )
    };
    context! {
        title => "How the shop does", routes => seen.map(route).collect::<Vec<_>>(),
        objects => Kind::ALL.iter().filter_map(object).collect::<Vec<_>>(),
        throttled => counts.throttled, conflicts => counts.conflicts_retried, losses => counts.losses_retried,
    }
}

/// The histogram of a route as bars of a plot 224 wide and 40 high.
fn bars(counted: &RouteCounts) -> Vec<Value> {
    let most = counted.buckets.iter().copied().max().unwrap_or(0).max(1);
    let bar = |(bucket, count): (usize, &u64)| {
        let height = (count * 38).div_ceil(most);
        let label = format!("up to {}: {count}", milliseconds(bound_us(bucket)));
        context! { x => bucket * 224 / BUCKETS, y => 40 - height, height, label }
    };
    counted.buckets.iter().enumerate().filter(|(_, count)| **count > 0).map(bar).collect()
}

fn milliseconds(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..100_000 => format!("{:.1} ms", us as f64 / 1e3),
        _ => format!("{} ms", us / 1_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exposition_says_each_name_once_and_adds_up() {
        let mut counts = Counts::default();
        counts.routes[0].buckets[3] = 2;
        counts.routes[0].buckets[9] = 5;
        counts.objects[1] = (100, 1);
        let text = exposition(&counts).unwrap();
        assert!(text.contains("shop_request_seconds_bucket{route=\"home\",le=\"+Inf\"} 7\n"), "{text}");
        assert!(text.contains("shop_objects_loaded_total{kind=\"price\"} 1\n"), "{text}");
        let types: Vec<&str> = text.lines().filter(|line| line.starts_with("# TYPE")).collect();
        assert_eq!(types.len(), types.iter().collect::<std::collections::BTreeSet<_>>().len());
    }
}
