//! Quotes in comma-separated lists that open, and close elsewhere or never.

use super::*;

#[test]
fn a_stray_quote_does_not_swallow_the_file() {
    let mut text = b"url\n\"".to_vec();
    text.resize(text_records::MAX_RECORD_BYTES as usize + (1 << 17), b'a');
    let error = Case::new(&[("a.csv", &text)]).survey().unwrap_err().to_string();
    assert!(error.contains("a record is longer than"), "{error}");
    text[4] = b' ';
    assert!(Case::new(&[("a.txt", &text)]).survey().is_err());
    let lines = vec![b"http://a.b/0123456789\n".as_slice(); 1 << 20].concat();
    assert_eq!(Case::new(&[("a.txt", &lines)]).survey().unwrap().shards().len(), 1 << 19);
}

#[test]
fn a_quote_that_is_never_closed_is_named_and_a_comma_too_many_is_a_bad_row() {
    let rows = |captions: &[&str]| {
        let lines: Vec<String> =
            captions.iter().enumerate().map(|(row, caption)| format!("http://a/{row},{caption}\n")).collect();
        format!("url,caption\n{}", lines.concat())
    };
    let case = |captions: &[&str]| Case::new(&[("urls.csv", rows(captions).as_bytes())]);
    let error = case(&["one", "\"a 5 inch", "three", "four"]).survey().unwrap_err().to_string();
    assert!(error.contains("line 3"), "{error}");
    assert_eq!(
        case(&["\"two\nlines, one \"\"word\"\"\"", "a red car, parked outside"]).rows(),
        ["http://a/0|two\nlines, one \"word\"|[]", "(bad-row)|-|[]"]
    );
    assert_eq!(
        case(&["5\" nail", "\"two\nlines\"", "three"]).rows(),
        ["http://a/0|5\" nail|[]", "http://a/1|two\nlines|[]", "http://a/2|three|[]"]
    );
}

#[test]
fn two_stray_quotes_do_not_swallow_rows() {
    let check = |list: &str, line: u64| {
        let error = Case::new(&[("urls.csv", list.as_bytes())]).survey().unwrap_err().to_string();
        assert!(error.contains(&format!("line {line} and closed rows later")), "{list}: {error}");
    };
    check("url,caption\nhttp://a/1,one\nhttp://a/2,\"5 inch\nhttp://a/3,three\nhttp://a/4,\"6 inch\n", 3);
    // In neighbouring rows; and with a column behind.
    check("url,caption\nhttp://a/2,\"5 inch\nhttp://a/3,\"6 inch\n", 2);
    // Behind blank lines, and with both kinds of line ends.
    for ends in ["\n", "\r\n"] {
        let list = "url,caption\nhttp://a/1,one\n\n\nhttp://a/2,\"5 inch\nhttp://a/3,\"6 inch\n";
        check(&list.replace('\n', ends), 5);
    }
    check("url,caption,n\nhttp://a/2,\"5 inch,1\nhttp://a/3,\"6 inch,2\n", 2);
    check("caption,url,n\n\"5 inch,http://a/2,1\n\"6 inch,http://a/3,2\n", 2);
    check("caption,n,url\n\"5 inch,1,http://a/2\n\"6 inch,2,http://a/3\n", 2);
    // Commas in the lines of a caption are none of this.
    let case = Case::new(&[("urls.csv", b"url,caption\nhttp://a/1,\"Red,\ngreen, blue\nand, yellow\"\n")]);
    assert_eq!(case.rows(), ["http://a/1|Red,\ngreen, blue\nand, yellow|[]"]);
}

#[test]
fn a_quote_that_is_never_closed_is_told_with_its_line() {
    let survey = |list: &str| Case::new(&[("urls.csv", list.as_bytes())]).survey();
    for (list, line) in [
        // What it swallows looks like rows, or does not.
        ("url,caption\nhttp://a/1,one\nhttp://a/2,\"5 inch\nhttp://a/3,three\n", 3),
        ("url,caption\nhttp://a/1,one\nhttp://a/2,\"5 inch\n", 3),
        ("url,caption\r\n\r\nhttp://a/1,one\r\nhttp://a/2,\"5 inch", 4),
        // It is opened in a later line of its row.
        ("url,caption,n\nhttp://a/1,\"one\ntwo\",\"3\nhttp://a/3,three,3\n", 3),
        // A doubled quote does not close.
        ("caption,url\n\"one\"\"\n\"\"\n", 2),
        ("url,\"caption\nhttp://a/1,one\n", 1),
    ] {
        let error = survey(list).unwrap_err().to_string();
        let expected = format!("a quote is opened in line {line} and never closed");
        assert!(error.ends_with(&expected), "{list}: {error}");
    }
    // A quote inside a cell opens nothing, and the last row may run over lines.
    let list = "url,caption\nhttp://a/1,5\" nail\nhttp://a/2,\"two\nlines\"";
    assert_eq!(
        Case::new(&[("urls.csv", list.as_bytes())]).rows(),
        ["http://a/1|5\" nail|[]", "http://a/2|two\nlines|[]"]
    );
}
