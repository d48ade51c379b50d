//! What somebody who mistyped a name may have meant.

/// The name of `names` that is spelled most like `typed`, if one is near enough: a third of the letters may be wrong.
pub(crate) fn nearest<'a>(typed: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let most = (typed.chars().count() / 3).max(1);
    let distances = names.into_iter().map(|name| (distance(typed, name), name));
    distances.filter(|(distance, _)| *distance <= most).min_by_key(|(distance, _)| *distance).map(|it| it.1)
}

/// Letters to insert, remove, replace or exchange with a neighbour (optimal string alignment). `-` and `_` are one, and so
/// are capitals and small letters.
fn distance(left: &str, right: &str) -> usize {
    let letters = |text: &str| text.to_lowercase().replace('-', "_").chars().collect::<Vec<_>>();
    let (left, right) = (letters(left), letters(right));
    let mut rows = vec![(0..=right.len()).collect::<Vec<_>>()];
    for (row, letter) in left.iter().enumerate() {
        let mut next = vec![row + 1];
        for (column, other) in right.iter().enumerate() {
            let replaced = rows[row][column] + usize::from(letter != other);
            let mut least = replaced.min(rows[row][column + 1] + 1).min(next[column] + 1);
            if row > 0 && column > 0 && *letter == right[column - 1] && left[row - 1] == *other {
                least = least.min(rows[row - 1][column - 1] + 1);
            }
            next.push(least);
        }
        rows.push(next);
    }
    rows[left.len()][right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_near_is_found() {
        let names = ["retries", "timeout", "in_flight", "per_host_in_flight", "url_list"];
        for (typed, expected) in [
            ("retires", Some("retries")),
            ("retry", None),
            ("time_out", Some("timeout")),
            ("IN-FLIGHT", Some("in_flight")),
            ("per_host_inflight", Some("per_host_in_flight")),
            ("urlist", Some("url_list")),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(nearest(typed, names), expected, "{typed}");
        }
        assert_eq!(nearest("a", []), None);
    }
}
