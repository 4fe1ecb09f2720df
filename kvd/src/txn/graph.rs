//! The wait-for graph: who waits for whom, and who would wait for itself.
//!
//! Searched when somebody begins to wait, and only from there: before, there was no cycle. So a deadlock is found before
//! anybody has waited for it.

use std::collections::HashSet;

use super::Number;

/// A way from `start` back to itself, without the closing `start`; `None`: there is none.
pub(super) fn cycle(start: Number, waits_for: impl Fn(Number) -> Vec<Number>) -> Option<Vec<Number>> {
    let mut seen = HashSet::new();
    // The path from `start`, each with those of its successors that were not followed yet.
    let mut path = vec![(start, waits_for(start))];
    while let Some((_, ahead)) = path.last_mut() {
        match ahead.pop() {
            None => drop(path.pop()),
            Some(next) if next == start => return Some(path.iter().map(|(number, _)| *number).collect()),
            Some(next) if seen.insert(next) => path.push((next, waits_for(next))),
            Some(_) => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_graph(edges: &[(Number, Number)], start: Number) -> Option<Vec<Number>> {
        cycle(start, |from| edges.iter().filter(|edge| edge.0 == from).map(|edge| edge.1).collect())
    }

    #[test]
    fn a_ring_is_found_from_each_of_its_members_and_from_nobody_else() {
        let edges = [(1, 2), (2, 3), (3, 1), (4, 1), (3, 5)];
        assert_eq!(in_graph(&edges, 1), Some(vec![1, 2, 3]));
        assert_eq!(in_graph(&edges, 3), Some(vec![3, 1, 2]));
        assert_eq!(in_graph(&edges, 4), None, "it waits for a ring, but is not in it");
        assert_eq!(in_graph(&edges, 5), None);
    }

    #[test]
    fn a_wide_graph_without_a_ring_is_searched_once() {
        let edges: Vec<_> = (0..40).flat_map(|i| [(i, i + 1), (i, i + 2)]).collect();
        assert_eq!(in_graph(&edges, 0), None);
    }
}
