//! Parts of pages that commands write: what stands between `<!-- NAME: begin -->` and `<!-- NAME: end -->`.

use anyhow::Context as _;
use std::path::Path;

/// Replaces the part of that name.
pub(crate) fn replace(page: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    let old = std::fs::read_to_string(page).with_context(|| page.display().to_string())?;
    let new = replaced(&old, name, text).with_context(|| page.display().to_string())?;
    crate::json_file::write_bytes(page, new.as_bytes())
}

/// The page with that part replaced; an error if it has no lines between which it stands.
pub(crate) fn replaced(page: &str, name: &str, text: &str) -> anyhow::Result<String> {
    let (begin, end) = (begin(name), end(name));
    let (before, _, after) = split(page, name)?;
    Ok(format!("{before}{begin}\n\n{text}\n{end}{after}"))
}

/// What the part holds now.
pub(crate) fn part<'a>(page: &'a str, name: &str) -> anyhow::Result<&'a str> {
    split(page, name).map(|(_, part, _)| part)
}

/// What stands before the part, in it and after it, without the lines that mark it.
fn split<'a>(page: &'a str, name: &str) -> anyhow::Result<(&'a str, &'a str, &'a str)> {
    let (begin, end) = (begin(name), end(name));
    let markers = || format!("it must hold the lines `{begin}` and `{end}`, in this order");
    let (before, rest) = page.split_once(&begin).with_context(markers)?;
    let (part, after) = rest.split_once(&end).with_context(markers)?;
    Ok((before, part, after))
}

fn begin(name: &str) -> String {
    format!("<!-- {name}: begin -->")
}

fn end(name: &str) -> String {
    format!("<!-- {name}: end -->")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_between_the_markers_is_replaced() {
        let page = "# A\n<!-- a: begin -->\nold\n<!-- a: end -->\nrest";
        let new = replaced(page, "a", "new\n").unwrap();
        assert_eq!(new, "# A\n<!-- a: begin -->\n\nnew\n\n<!-- a: end -->\nrest");
        assert_eq!(part(&new, "a").unwrap().trim(), "new");
        assert_eq!(replaced(&new, "a", "new\n").unwrap(), new);
        let error = replaced(page, "b", "new").unwrap_err().to_string();
        assert!(error.contains("<!-- b: begin -->"), "{error}");
    }
}
