//! Every format, with the awkward cases of each.

use super::*;
use arrow_array::cast::AsArray as _;
use arrow_array::types::{Decimal128Type, TimestampMicrosecondType};
use arrow_array::{
    Array as _, ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, DictionaryArray,
    Float32Array, Float64Array, Int8Array, Int32Array, LargeStringArray, ListArray, RecordBatch, StringArray,
    StringViewArray, StructArray, TimestampMicrosecondArray, UInt64Array,
};
use arrow_schema::Field;
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
    assert_eq!(case.survey().unwrap().columns()[0].data_type, DataType::Utf8);
}

#[test]
fn tsv_gzip_and_zstd() {
    let text = b"url\tcaption\nhttp://a/1\ta, b\nhttp://a/2\t\xff\n";
    for (name, bytes) in [
        ("urls.tsv", text.to_vec()),
        ("urls.tsv.gz", gzip(text)),
        ("urls.tsv.zst", zstd::encode_all(&text[..], 3).unwrap()),
        // Two frames one after the other, as parallel compressors and `cat` leave them.
        ("urls.TSV.GZ", [gzip(&text[..20]), gzip(&text[20..])].concat()),
        ("b.tsv.zst", [&text[..20], &text[20..]].map(|part| zstd::encode_all(part, 1).unwrap()).concat()),
        // The name does not always know.
        ("c.tsv", gzip(text)),
    ] {
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
        {"caption": "no url", "clip": null}
        {"url": "http://a/6", "caption": "NaN, which Python writes", "clip": NaN}"#;
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
            "http://a/6|NaN, which Python writes|[null,null]",
        ]
    );
    let list = case.survey().unwrap();
    assert_eq!(list.columns().iter().map(|column| column.name.as_str()).collect::<Vec<_>>(), ["uid", "clip"]);
    assert_eq!(list.columns()[1].data_type, DataType::Float64);
}

#[test]
fn json_list_is_streamed_and_syntax_errors_are_fatal() {
    let text = br#"[{"text": "one", "url": "http://a/1"}, {"url": "http://a/2", "text": "two"}, 3]"#;
    let mut case = Case::new(&[("urls.json", text)]);
    case.config.caption_col = Some("text".to_owned());
    assert_eq!(case.rows(), ["http://a/1|one|[]", "http://a/2|two|[]", "(bad-row)|-|[]"]);
    for broken in ["[{\"url\": \"http://a/1\"}, {\"url\"", "\"http://a/1\"", "[] []", ""] {
        let error = Case::new(&[("urls.json", broken.as_bytes())]).survey().unwrap_err();
        assert!(matches!(error, DataFetchError::ListFormat { format: "json", .. }), "{broken}: {error}");
    }
}

#[test]
fn json_lists_of_python_are_read() {
    let text = br#"[{"url": "http://a/1", "caption": "NaN, which Python writes", "clip": NaN},
        {"url": "http://a/2", "caption": "two", "clip": -Infinity}, {"url": "http://a/3", "caption": "three", "clip": 0.5}]"#;
    let marked = [b"\xef\xbb\xbf", &text[..]].concat();
    let mut case = Case::new(&[("urls.json", &marked)]);
    case.config.save_additional_columns = vec!["clip".to_owned()];
    let rows =
        ["http://a/1|NaN, which Python writes|[null]", "http://a/2|two|[null]", "http://a/3|three|[0.5]"];
    assert_eq!(case.rows(), rows);
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
    assert_eq!(case.survey().unwrap().columns()[1].data_type, DataType::Float32);
    case.config.url_col = "width".to_owned();
    let error = case.survey().unwrap_err();
    assert!(matches!(&error, DataFetchError::Config(wrong) if wrong.key() == "url_col"), "{error}");
}

#[test]
fn a_missing_column_is_named_with_its_key_and_the_alternatives() {
    let mut case = Case::new(&[("urls.csv", b"link,text\nhttp://a/1,one\n")]);
    let error = case.survey().unwrap_err().to_string();
    assert!(error.starts_with("url_col: names column `url`, but "), "{error}");
    assert!(error.ends_with("urls.csv has only `link`, `text`"), "{error}");
    case.config.url_col = "link".to_owned();
    assert_eq!(case.rows(), ["http://a/1|-|[]"]);
    case.config.caption_col = Some("alt".to_owned());
    assert!(case.survey().unwrap_err().to_string().starts_with("caption_col: "));
    case.config.caption_col = None;
    case.config.uid_col = Some("uid".to_owned());
    assert!(case.survey().unwrap_err().to_string().starts_with("uid_col: "));
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
    let is_wrong_key =
        |error: &DataFetchError| matches!(error, DataFetchError::Config(wrong) if wrong.key() == "url_list");
    assert!(is_wrong_key(&case.survey().unwrap_err()));
    let survey = |name: &str| UrlList::survey(&case.config, &case.dir.path().join(name), &|| Ok(()));
    assert!(is_wrong_key(&survey("list.xml").unwrap_err()));
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
    assert!(case.survey().unwrap_err().to_string().starts_with("verify_hash: names column `missing`"));
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
    assert!(case.survey().unwrap_err().to_string().starts_with("bbox_col: names column `boxes`"));
    let mut without = Case::new(&[("a.csv", b"url\nu\n")]);
    without.config.save_additional_columns = vec!["uid".to_owned()];
    assert!(
        without.survey().unwrap_err().to_string().starts_with("save_additional_columns: names column `uid`")
    );
}

#[test]
fn a_json_file_may_hold_lines() {
    let text =
        "\u{feff}\n {\"url\": \"http://a/1\", \"caption\": \"one\"}\nbroken\n{\"url\": \"http://a/2\"}\n";
    let case = Case::new(&[("urls.json", text.as_bytes())]);
    assert_eq!(case.rows(), ["http://a/1|one|[]", "(bad-row)|-|[]", "http://a/2|-|[]"]);
}

#[test]
fn a_cut_compressed_list_is_an_error() {
    let text = (0..100).map(|row| format!("http://a/{row}\n")).collect::<String>();
    for (name, mut bytes) in
        [("a.txt.gz", gzip(text.as_bytes())), ("a.txt.zst", zstd::encode_all(text.as_bytes(), 3).unwrap())]
    {
        bytes.truncate(bytes.len() - 9);
        let error = Case::new(&[(name, &bytes)]).survey().unwrap_err();
        assert!(matches!(error, DataFetchError::ListFormat { format: "txt", .. }), "{name}: {error}");
    }
}

#[test]
fn a_pattern_names_files_in_order() {
    let case =
        Case::new(&[("b-1.txt", b"b1\n"), ("b-0.csv", b"url\nb0\n"), ("a.txt", b"a\n"), ("c.xml", b"<x/>")]);
    std::fs::create_dir(case.dir.path().join("deep")).unwrap();
    write_atomic(&case.dir.path().join("deep/b-2.txt"), b"b2\n").unwrap();
    let urls = |pattern: &str| -> Result<Vec<String>, DataFetchError> {
        let list = UrlList::survey(&case.config, &case.dir.path().join(pattern), &|| Ok(()))?;
        let shards = read_shards(&list, &|_| true)?;
        Ok(shards.iter().flat_map(|shard| &shard.rows).map(|row| row.url.clone().unwrap()).collect())
    };
    assert_eq!(urls("b-*").unwrap(), ["b0", "b1"]);
    assert_eq!(urls("**/*.txt").unwrap(), ["a", "b1", "b2"]);
    assert_eq!(urls("deep/*").unwrap(), ["b2"]);
    assert!(urls("d-*").unwrap_err().to_string().contains("no file matches this pattern"));
    assert!(urls("*").unwrap_err().to_string().contains("c.xml: its extension names no format"));
}

/// Every type that people's lists have: how its values look in the samples' JSON, and what it is in the shards'
/// parquet.
#[test]
fn parquet_types_are_carried() {
    let boxes = ListArray::from_iter_primitive::<arrow_array::types::Float64Type, _, _>([
        Some(vec![Some(0.25), Some(1.0)]),
        Some(vec![]),
    ]);
    let nested_field = Arc::new(Field::new("element", boxes.data_type().clone(), true));
    let offsets = arrow_buffer::OffsetBuffer::from_lengths([2, 0]);
    let face_bboxes = ListArray::new(nested_field, offsets, Arc::new(boxes), None);
    let pair = StructArray::from(vec![(
        Arc::new(Field::new("width", DataType::Int32, true)),
        Arc::new(Int32Array::from(vec![Some(7), None])) as ArrayRef,
    )]);
    let dictionary: DictionaryArray<arrow_array::types::Int32Type> = vec!["x", "x"].into_iter().collect();
    let moments = || TimestampMicrosecondArray::from(vec![Some(1_700_000_000_123_456), None]);
    let prices = Decimal128Array::from(vec![12_345, -5]).with_precision_and_scale(10, 2).unwrap();
    let micros =
        |zone: Option<&str>| DataType::Timestamp(arrow_schema::TimeUnit::Microsecond, zone.map(Into::into));
    let table: Vec<(&str, ArrayRef, DataType, Value, Value)> = vec![
        (
            "bool",
            Arc::new(BooleanArray::from(vec![true, false])),
            DataType::Boolean,
            json!(true),
            json!(false),
        ),
        ("i8", Arc::new(Int8Array::from(vec![-128, 127])), DataType::Int8, json!(-128), json!(127)),
        ("u64", Arc::new(UInt64Array::from(vec![u64::MAX, 0])), DataType::UInt64, json!(u64::MAX), json!(0)),
        (
            "f32",
            Arc::new(Float32Array::from(vec![0.1, f32::NAN])),
            DataType::Float32,
            json!(f64::from(0.1_f32)),
            json!(null),
        ),
        ("f64", Arc::new(Float64Array::from(vec![0.1, 1e300])), DataType::Float64, json!(0.1), json!(1e300)),
        (
            "text",
            Arc::new(StringArray::from(vec![Some("é\n\""), None])),
            DataType::Utf8,
            json!("é\n\""),
            json!(null),
        ),
        ("large", Arc::new(LargeStringArray::from(vec!["l", ""])), DataType::Utf8, json!("l"), json!("")),
        ("view", Arc::new(StringViewArray::from(vec!["v", "w"])), DataType::Utf8, json!("v"), json!("w")),
        ("dictionary", Arc::new(dictionary), DataType::Utf8, json!("x"), json!("x")),
        (
            "date",
            Arc::new(Date32Array::from(vec![0, 19_000])),
            DataType::Date32,
            json!("1970-01-01"),
            json!("2022-01-08"),
        ),
        ("local", Arc::new(moments()), micros(None), json!("2023-11-14T22:13:20.123456"), json!(null)),
        (
            "zoned",
            Arc::new(moments().with_timezone("UTC")),
            micros(Some("UTC")),
            json!("2023-11-14T22:13:20.123456Z"),
            json!(null),
        ),
        ("decimal", Arc::new(prices), DataType::Decimal128(10, 2), json!("123.45"), json!("-0.05")),
        (
            "face_bboxes",
            Arc::new(face_bboxes.clone()),
            face_bboxes.data_type().clone(),
            json!([[0.25, 1.0], []]),
            json!([]),
        ),
        (
            "struct",
            Arc::new(pair.clone()),
            pair.data_type().clone(),
            json!({"width": 7}),
            json!({"width": null}),
        ),
    ];
    let urls: ArrayRef = Arc::new(BinaryArray::from(vec![b"http://a/1".as_slice(), b"http://a/2"]));
    let mut columns = vec![("url", urls)];
    columns.extend(table.iter().map(|(name, column, ..)| (*name, Arc::clone(column))));
    let mut case = Case::new(&[("list.parquet", &parquet(columns))]);
    case.config.save_additional_columns = table.iter().map(|(name, ..)| (*name).to_owned()).collect();
    let list = case.survey().unwrap();
    let rows = &read_shards(&list, &|_| true).unwrap()[0].rows;
    assert_eq!(rows[1].url.as_deref(), Ok("http://a/2"));
    for (idx, (name, column, data_type, first, second)) in table.iter().enumerate() {
        let carried = &list.columns()[idx];
        assert_eq!((&carried.name[..], &carried.data_type), (*name, data_type));
        assert_eq!((&rows[0].extra[idx], &rows[1].extra[idx]), (first, second), "{name}");
        let mut builder = CarriedBuilder::new(carried);
        rows.iter().for_each(|row| builder.push(&row.extra[idx]));
        let stored = builder.finish().unwrap();
        assert_eq!(stored.data_type(), data_type, "{name}");
        // A NaN becomes null; everything else is as it was.
        let expected = arrow_cast::cast(column, data_type).unwrap();
        assert_eq!(stored.slice(0, 1).to_data(), expected.slice(0, 1).to_data(), "{name}");
        assert_eq!(stored.is_null(1), second.is_null(), "{name}");
    }
    let values = |name: &str| {
        let idx = table.iter().position(|(column, ..)| *column == name).unwrap();
        let mut builder = CarriedBuilder::new(&list.columns()[idx]);
        rows.iter().for_each(|row| builder.push(&row.extra[idx]));
        builder.finish().unwrap()
    };
    assert_eq!(values("decimal").as_primitive::<Decimal128Type>().value(1), -5);
    assert_eq!(values("zoned").as_primitive::<TimestampMicrosecondType>().value(0), 1_700_000_000_123_456);
}

#[test]
fn bytes_are_refused_by_name() {
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("url", Arc::new(StringArray::from(vec!["http://a/1"]))),
        ("jpg", Arc::new(BinaryArray::from(vec![b"\xff\xd8".as_slice()]))),
    ];
    let mut case = Case::new(&[("list.parquet", &parquet(columns))]);
    assert_eq!(case.rows(), ["http://a/1|-|[]"]);
    case.config.save_additional_columns = vec!["jpg".to_owned()];
    let error = case.survey().unwrap_err().to_string();
    assert!(error.starts_with("save_additional_columns: column `jpg` of "), "{error}");
    assert!(error.ends_with("is of type Binary, which cannot be stored"), "{error}");
}

#[test]
fn parquet_is_read_from_the_first_wanted_shard_and_in_every_codec() {
    use parquet::basic::{BrotliLevel, Compression, GzipLevel, ZstdLevel};
    for compression in [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(GzipLevel::default()),
        Compression::BROTLI(BrotliLevel::default()),
        Compression::ZSTD(ZstdLevel::default()),
        Compression::LZ4_RAW,
    ] {
        let urls: ArrayRef = Arc::new(StringArray::from_iter_values((0..5000).map(|row| format!("u{row}"))));
        let batch = RecordBatch::try_from_iter([("url", urls)]).unwrap();
        let properties = parquet::file::properties::WriterProperties::builder()
            .set_compression(compression)
            .set_max_row_group_row_count(Some(700))
            .build();
        let mut bytes = Vec::new();
        let mut writer =
            parquet::arrow::ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties)).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        let case = Case::new(&[("list.parquet", &bytes)]);
        let list = case.survey().unwrap();
        assert_eq!(list.shards().len(), 2500);
        let shards = read_shards(&list, &|shard_idx| shard_idx == 1900 || shard_idx == 2499).unwrap();
        let found: Vec<_> = shards
            .iter()
            .map(|shard| (shard.shard_idx, shard.rows[0].url.clone().unwrap(), shard.rows.len()))
            .collect();
        assert_eq!(found, [(1900, "u3800".to_owned(), 2), (2499, "u4998".to_owned(), 2)], "{compression}");
    }
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

#[test]
fn a_field_of_a_tsv_ends_with_its_line() {
    let list = "url\tcaption\nhttp://a/1\t\"5 inch\nhttp://a/2\ttwo\r\n\nhttp://a/3\t\"6 inch\nhttp://a/4\t\"a\tb \"\"c\"\"\"\n\
        http://a/5\tx\ty\n";
    assert_eq!(
        Case::new(&[("urls.tsv", list.as_bytes())]).rows(),
        [
            "http://a/1|\"5 inch|[]",
            "http://a/2|two|[]",
            "http://a/3|\"6 inch|[]",
            "http://a/4|a\tb \"c\"|[]",
            "(bad-row)|-|[]"
        ]
    );
}

#[test]
fn cells_have_the_types_of_their_columns() {
    let head = "uid,url,caption,similarity,width,is_safe,note\n";
    let rows = "7,http://a/1,8,0.25,640,true,x\n8,http://a/2,9,1,,False,5\n9,http://a/3,10,,480,,\n";
    let mut case = Case::new(&[("a.csv", format!("{head}{rows}").as_bytes())]);
    case.config.save_additional_columns =
        ["similarity", "width", "is_safe", "note"].map(str::to_owned).to_vec();
    let types: Vec<_> = case.survey().unwrap().columns().iter().map(|it| it.data_type.clone()).collect();
    let expected = [DataType::Utf8, DataType::Float64, DataType::Int64, DataType::Boolean, DataType::Utf8];
    assert_eq!(types, expected);
    assert_eq!(
        case.rows(),
        [
            "http://a/1|8|[\"7\",0.25,640,true,\"x\"]",
            "http://a/2|9|[\"8\",1.0,null,false,\"5\"]",
            "http://a/3|10|[\"9\",null,480,null,\"\"]",
        ]
    );
    // The type is that of all files together.
    write_atomic(&case.dir.path().join("b.csv"), format!("{head}1,http://b/1,c,high,0.5,,\n").as_bytes())
        .unwrap();
    let rows = case.rows();
    assert_eq!(rows[0], "http://a/1|8|[\"7\",\"0.25\",640.0,true,\"x\"]");
    assert_eq!(rows[3], "http://b/1|c|[\"1\",\"high\",0.5,null,\"\"]");
}

#[test]
fn a_damaged_parquet_list_is_an_error() {
    let urls = StringArray::from_iter_values((0..40).map(|row| format!("http://a/{}", row % 7)));
    let sizes = Int32Array::from_iter((0..40).map(|row| (row % 5 > 0).then_some(row)));
    let bytes = parquet(vec![("url", Arc::new(urls)), ("width", Arc::new(sizes))]);
    let mut case = Case::new(&[]);
    case.config.save_additional_columns = vec!["width".to_owned()];
    let mut num_refused = 0;
    for position in 0..bytes.len() {
        for value in [bytes[position] ^ 0xff, bytes[position].wrapping_add(1), bytes[position] ^ 0x80] {
            let mut damaged = bytes.clone();
            damaged[position] = value;
            write_atomic(&case.dir.path().join("a.parquet"), &damaged).unwrap();
            // Whatever it is, it is no panic.
            let read = case.survey().and_then(|list| read_shards(&list, &|shard_idx| shard_idx < 100));
            num_refused += usize::from(read.is_err());
        }
    }
    assert!(num_refused > 100, "{num_refused}");
}
