//! Lists in parquet files.

use super::*;

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
