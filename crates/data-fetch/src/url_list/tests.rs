//! Every format, with the awkward cases of each.

use super::*;
use arrow_array::{ArrayRef, Float32Array, Int32Array, RecordBatch, StringArray};
use flate2::Compression;
use flate2::write::GzEncoder;
use oqvl_shard_io::write_atomic;
use serde_json::json;
use std::io::Write as _;
use std::sync::Arc;
use tempfile::TempDir;

struct Case {
    dir: TempDir,
    config: DataFetchConfig,
}

impl Case {
    fn new(files: &[(&str, &[u8])]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            write_atomic(&dir.path().join(name), bytes).unwrap();
        }
        let config = DataFetchConfig { number_sample_per_shard: 2, ..Default::default() };
        Self { dir, config }
    }

    fn survey(&self) -> Result<UrlList, DataFetchError> {
        UrlList::survey(&self.config, self.dir.path(), &|| Ok(()))
    }

    fn shards(&self) -> Vec<ShardRows> {
        let list = self.survey().unwrap();
        let shards = read_shards(&list, &|_| true).unwrap();
        for shard in &shards {
            assert_eq!(shard.rows.len() as u64, list.rows_in_shard(shard.shard_idx));
        }
        assert_eq!(shards.len(), list.shards().len());
        shards
    }

    /// All rows as `url|caption|extra`.
    fn rows(&self) -> Vec<String> {
        let text = |row: &UrlRow| {
            let url = row.url.clone().unwrap_or_else(|reject| format!("({})", reject.reason()));
            format!("{url}|{}|{}", row.caption.as_deref().unwrap_or("-"), json!(row.extra))
        };
        self.shards().iter().flat_map(|shard| &shard.rows).map(text).collect()
    }
}

fn read_shards(list: &UrlList, wants: &dyn Fn(usize) -> bool) -> Result<Vec<ShardRows>, DataFetchError> {
    let mut shards = Vec::new();
    list.for_each_shard(wants, &|| ControlFlow::Continue(()), &mut |shard| {
        shards.push(shard);
        ControlFlow::Continue(())
    })?;
    Ok(shards)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn parquet(columns: Vec<(&str, ArrayRef)>) -> Vec<u8> {
    let batch = RecordBatch::try_from_iter_with_nullable(
        columns.into_iter().map(|(name, column)| (name, column, true)),
    );
    let batch = batch.unwrap();
    let mut bytes = Vec::new();
    let mut writer = parquet::arrow::ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    bytes
}

#[test]
fn txt_lines_may_hold_commas_quotes_and_blanks() {
    let text = b"\xef\xbb\xbfhttp://a/x,y,z.jpg\r\n\r\n  http://a/\"q\".png \n\xff\nhttp://a/last";
    let case = Case::new(&[("urls.txt", text)]);
    assert_eq!(
        case.rows(),
        ["http://a/x,y,z.jpg|-|[]", "http://a/\"q\".png|-|[]", "(bad-row)|-|[]", "http://a/last|-|[]"]
    );
}

#[test]
fn csv_is_quoted_and_ragged() {
    let text = "\u{feff}uid,caption,url\n\
        1,\"a \"\"red\"\" square, two\nlines\",http://a/1\n\
        2,,http://a/2\n\
        3\n\
        \n\
        4,plain, http://a/4 ,surplus\n\
        5,plain, http://a/5 \n";
    let case = Case::new(&[("urls.csv", text.as_bytes())]);
    assert_eq!(
        case.rows(),
        [
            "http://a/1|a \"red\" square, two\nlines|[\"1\"]",
            "http://a/2||[\"2\"]",
            "(bad-url)|-|[\"3\"]",
            "(bad-row)|-|[null]",
            "http://a/5|plain|[\"5\"]",
        ]
    );
    assert_eq!(case.survey().unwrap().columns()[0].column_type, ColumnType::Text);
}

#[test]
fn tsv_and_gzip() {
    let text = b"url\tcaption\nhttp://a/1\ta, b\nhttp://a/2\t\xff\n";
    for (name, bytes) in [("urls.tsv", text.to_vec()), ("urls.tsv.gz", gzip(text))] {
        assert_eq!(Case::new(&[(name, &bytes)]).rows(), ["http://a/1|a, b|[]", "(bad-row)|-|[]"]);
    }
}

#[test]
fn json_lines_keep_broken_rows_in_place() {
    let text = br#"{"url": "http://a/1", "caption": "one", "uid": "u1", "clip": 1}

        {"url": "http://a/2", "caption": null, "clip": 0.5}
        {"url": "http://a/3",
        ["http://a/4"]
        {"url": 5, "caption": 6, "uid": "u5"}
        {"caption": "no url", "clip": null}"#;
    let mut case = Case::new(&[("urls.jsonl", text)]);
    case.config.save_additional_columns = vec!["clip".to_owned()];
    assert_eq!(
        case.rows(),
        [
            "http://a/1|one|[\"u1\",1]",
            "http://a/2|-|[null,0.5]",
            "(bad-row)|-|[null,null]",
            "(bad-row)|-|[null,null]",
            "(bad-url)|6|[\"u5\",null]",
            "(bad-url)|no url|[null,null]",
        ]
    );
    let list = case.survey().unwrap();
    assert_eq!(list.columns().iter().map(|column| column.name.as_str()).collect::<Vec<_>>(), ["uid", "clip"]);
    assert_eq!(list.columns()[1].column_type, ColumnType::Float);
}

#[test]
fn json_list_is_streamed_and_syntax_errors_are_fatal() {
    let text = br#"[{"text": "one", "url": "http://a/1"}, {"url": "http://a/2", "text": "two"}, 3]"#;
    let mut case = Case::new(&[("urls.json", text)]);
    case.config.caption_col = Some("text".to_owned());
    assert_eq!(case.rows(), ["http://a/1|one|[]", "http://a/2|two|[]", "(bad-row)|-|[]"]);
    for broken in ["[{\"url\": \"http://a/1\"}, {\"url\"", "{\"url\": \"http://a/1\"}", "[] []", ""] {
        let error = Case::new(&[("urls.json", broken.as_bytes())]).survey().unwrap_err();
        assert!(matches!(error, DataFetchError::ListFormat { format: "json", .. }), "{broken}: {error}");
    }
}

#[test]
fn parquet_brings_its_types() {
    let bytes = parquet(vec![
        ("uid", Arc::new(StringArray::from(vec!["u1", "u2", "u3"]))),
        ("url", Arc::new(StringArray::from(vec![Some("http://a/1"), None, Some("http://a/3")]))),
        ("text", Arc::new(StringArray::from(vec![Some("one"), Some("two"), None]))),
        ("width", Arc::new(Int32Array::from(vec![Some(10), Some(20), None]))),
        ("score", Arc::new(Float32Array::from(vec![0.5, f32::NAN, 2.0]))),
    ]);
    let mut case = Case::new(&[("part.parquet", &bytes)]);
    case.config.caption_col = Some("text".to_owned());
    case.config.save_additional_columns = vec!["score".to_owned()];
    assert_eq!(
        case.rows(),
        ["http://a/1|one|[\"u1\",0.5]", "(bad-url)|two|[\"u2\",null]", "http://a/3|-|[\"u3\",2.0]"]
    );
    assert_eq!(case.survey().unwrap().columns()[1].column_type, ColumnType::Float);
    case.config.url_col = "width".to_owned();
    assert!(matches!(case.survey().unwrap_err(), DataFetchError::ColumnType { .. }));
}

#[test]
fn a_missing_column_is_named_with_its_key_and_the_alternatives() {
    let mut case = Case::new(&[("urls.csv", b"link,text\nhttp://a/1,one\n")]);
    let error = case.survey().unwrap_err().to_string();
    assert!(error.contains("`url_col` names column `url`, but the list has only `link`, `text`"), "{error}");
    case.config.url_col = "link".to_owned();
    assert_eq!(case.rows(), ["http://a/1|-|[]"]);
    case.config.caption_col = Some("alt".to_owned());
    assert!(case.survey().unwrap_err().to_string().contains("caption_col"));
    case.config.caption_col = None;
    case.config.uid_col = Some("uid".to_owned());
    assert!(case.survey().unwrap_err().to_string().contains("uid_col"));
}

#[test]
fn shards_end_with_files_and_are_numbered_on() {
    let case = Case::new(&[
        ("b.txt", b"b1\nb2\n"),
        ("a.txt", b"a1\na2\na3\n"),
        ("c.txt", b""),
        ("d.txt", b"d1\n"),
        ("notes.md", b"not a list"),
        (".hidden.txt", b"h\n"),
    ]);
    let shards = case.shards();
    let urls = |shard: &ShardRows| shard.rows.iter().map(|row| row.url.clone().unwrap()).collect::<Vec<_>>();
    let found: Vec<_> = shards.iter().map(|shard| (shard.shard_idx, urls(shard))).collect();
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let expected =
        [(0, owned(&["a1", "a2"])), (1, owned(&["a3"])), (2, owned(&["b1", "b2"])), (3, owned(&["d1"]))];
    assert_eq!(found, expected);
}

#[test]
fn only_wanted_shards_are_handed_out() {
    let case = Case::new(&[("a.txt", b"a1\na2\na3\na4\na5\n"), ("b.txt", b"b1\n")]);
    let list = case.survey().unwrap();
    let shards = read_shards(&list, &|shard_idx| shard_idx == 1 || shard_idx == 3).unwrap();
    assert_eq!(shards.iter().map(|shard| shard.shard_idx).collect::<Vec<_>>(), [1, 3]);
    assert_eq!(shards[0].rows[0].url.as_deref(), Ok("a3"));
    assert_eq!(read_shards(&list, &|_| false).unwrap(), []);
}

#[test]
fn a_list_that_grew_or_shrank_is_noticed() {
    let case = Case::new(&[("a.txt", b"a1\na2\na3\n")]);
    let list = case.survey().unwrap();
    for (changed, found) in [("a1\na2\n", 2), ("a1\na2\na3\na4\na5\n", 4)] {
        write_atomic(&case.dir.path().join("a.txt"), changed.as_bytes()).unwrap();
        let error = read_shards(&list, &|_| true).unwrap_err();
        let is_right =
            matches!(&error, DataFetchError::ListChanged { expected: 3, found: rows, .. } if *rows == found);
        assert!(is_right, "{error}");
    }
}

#[test]
fn an_empty_list_has_no_shards() {
    for (name, bytes) in [("a.txt", &b""[..]), ("a.csv", b""), ("a.jsonl", b"\n\n"), ("a.json", b"[]")] {
        assert_eq!(Case::new(&[(name, bytes)]).shards(), [], "{name}");
    }
}

#[test]
fn unknown_and_missing_lists_are_told_apart() {
    let case = Case::new(&[("list.xml", b"<x/>")]);
    assert!(matches!(case.survey().unwrap_err(), DataFetchError::UnknownList { .. }));
    let survey = |name: &str| UrlList::survey(&case.config, &case.dir.path().join(name), &|| Ok(()));
    assert!(matches!(survey("list.xml").unwrap_err(), DataFetchError::UnknownList { .. }));
    assert!(matches!(survey("none.txt").unwrap_err(), DataFetchError::Io { .. }));
    let mut config = case.config.clone();
    config.input_format = Some(InputFormat::Txt);
    assert_eq!(
        UrlList::survey(&config, &case.dir.path().join("list.xml"), &|| Ok(())).unwrap().shards().len(),
        1
    );
}

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
fn the_survey_can_be_interrupted() {
    let case = Case::new(&[("a.txt", b"a1\n")]);
    let stop = || Err(DataFetchError::Interrupted(oqvl_stage::Interrupted));
    let error = UrlList::survey(&case.config, case.dir.path(), &stop).unwrap_err();
    assert!(matches!(error, DataFetchError::Interrupted(_)));
}

#[test]
fn a_file_of_something_else_is_named() {
    for (name, expected) in [
        ("urls.txt", "none of its 3 rows can be read"),
        ("urls.jsonl", "none of its 3 rows can be read"),
        ("urls.csv", "column `url`"),
    ] {
        let case = Case::new(&[(name, b"\xff\xfe\x00\n\xf0\xff\n\xff\xff\xff\n")]);
        let error = case.survey().unwrap_err().to_string();
        assert!(error.contains(expected), "{name}: {error}");
    }
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
fn digests_to_verify_stand_apart_from_what_is_carried() {
    let mut case = Case::new(&[(
        "a.csv",
        b"url,digest,other\nhttp://a/1,00ff,x\nhttp://a/2,,y\nnot a row,1,2,3,4\n".as_slice(),
    )]);
    case.config.save_additional_columns = vec!["other".to_owned()];
    assert!(case.shards()[0].rows.iter().all(|row| row.expected_hash.is_none()));
    case.config.verify_hash = Some(("digest".to_owned(), crate::config::ComputeHash::Sha256));
    let shards = case.shards();
    let expected: Vec<_> =
        shards.iter().flat_map(|shard| &shard.rows).map(|row| row.expected_hash.clone()).collect();
    assert_eq!(expected, [Some("00ff".to_owned()), Some(String::new()), None]);
    assert_eq!(case.rows()[0], "http://a/1|-|[\"x\"]");
    case.config.verify_hash = Some(("missing".to_owned(), crate::config::ComputeHash::Sha256));
    assert!(case.survey().unwrap_err().to_string().contains("`verify_hash` names column `missing`"));
}

#[test]
fn shards_may_be_numbered_from_anywhere() {
    let case = Case::new(&[("a.txt", b"u\nv\nw\n"), ("b.txt", b"x\n")]);
    let list = case.survey().unwrap().numbered_from(7);
    assert_eq!(list.shards(), 7..10);
    assert_eq!([6, 7, 8, 9, 10].map(|idx| list.rows_in_shard(idx)), [0, 2, 1, 1, 0]);
    let read: Vec<_> =
        read_shards(&list, &|idx| idx != 8).unwrap().into_iter().map(|shard| shard.shard_idx).collect();
    assert_eq!(read, [7, 9]);
    assert_eq!(Case::new(&[("a.txt", b"")]).survey().unwrap().numbered_from(3).shards(), 3..3);
}

#[test]
fn boxes_are_the_last_column_that_is_carried() {
    let mut case = Case::new(&[(
        "a.jsonl",
        b"{\"url\": \"u\", \"faces\": [[0.1, 0.2, 0.3, 0.4]], \"uid\": \"7\", \"x\": 1}\n",
    )]);
    assert_eq!(case.survey().unwrap().box_idx(), None);
    // `uid` may be named or not.
    for additional in [vec!["x"], vec!["x", "uid"]] {
        case.config.save_additional_columns = additional.into_iter().map(str::to_owned).collect();
        case.config.bbox_col = Some("faces".to_owned());
        let list = case.survey().unwrap();
        let names: Vec<_> = list.columns().iter().map(|column| column.name.as_str()).collect();
        assert_eq!((names, list.box_idx()), (vec!["uid", "x", "faces"], Some(2)));
        assert_eq!(case.rows(), ["u|-|[\"7\",1,[[0.1,0.2,0.3,0.4]]]"]);
    }
    case.config.bbox_col = Some("boxes".to_owned());
    assert!(case.survey().unwrap_err().to_string().contains("`bbox_col` names column `boxes`"));
    let mut without = Case::new(&[("a.csv", b"url\nu\n")]);
    without.config.save_additional_columns = vec!["uid".to_owned()];
    assert!(
        without.survey().unwrap_err().to_string().contains("`save_additional_columns` names column `uid`")
    );
}
