"""What tensorboard and swanlab themselves read of the files of trackers, as JSON.

    check_track.py FOLDER-OF-EVENT-FILES RUN-FOLDER

Needs the environment of track_venv.
"""

import json
import sys
from pathlib import Path

from google.protobuf.json_format import MessageToDict
from swanlab.proto.swanlab.record.v1.record_pb2 import Record
from swanlab.sdk.internal.core_python.store import DataStoreReader
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
import tensorboard
import swanlab
import yaml


def number(value):
    return value if value == value and abs(value) != float("inf") else str(value)


def event_files(folder):
    read = EventAccumulator(folder, size_guidance={"scalars": 0, "tensors": 0}).Reload()
    tags = read.Tags()
    scalars = {tag: [[event.step, number(event.value)] for event in read.Scalars(tag)] for tag in tags["scalars"]}
    text = lambda event: event.tensor_proto.string_val[0].decode()
    texts = {tag: [[event.step, text(event)] for event in read.Tensors(tag)] for tag in tags["tensors"]}
    plugins = {tag: read.SummaryMetadata(tag).plugin_data.plugin_name for tag in tags["tensors"]}
    assert set(plugins.values()) <= {"text"}, plugins
    return {"version": tensorboard.__version__, "scalars": scalars, "texts": texts}


def run_folder(folder):
    (path,) = Path(folder).glob("run-*.swanlab")
    reader = DataStoreReader()
    reader.open(path)
    records = []
    for payload in reader:
        record = Record()
        record.ParseFromString(payload)
        assert record.SerializeToString(deterministic=True), record
        records.append(record)
    assert reader._index == path.stat().st_size, "not all of the file was read"
    assert records[0].HasField("start"), records[0]
    scalars, texts = {}, []
    for record in records:
        if record.HasField("scalar"):
            row = [record.scalar.step, number(record.scalar.value.number)]
            scalars.setdefault(record.scalar.key, []).append(row)
        for item in record.media.value.items:
            texts.append((Path(folder) / "media/text" / item.filename).read_text("utf-8"))
    return {
        "version": swanlab.__version__,
        "start": MessageToDict(records[0].start),
        "finish": [record.finish.state for record in records if record.HasField("finish")],
        "columns": [record.column.column_key for record in records if record.HasField("column")],
        "config": yaml.safe_load((Path(folder) / "files/config.yaml").read_text("utf-8")),
        "scalars": scalars,
        "texts": texts,
    }


if __name__ == "__main__":
    events, run = sys.argv[1:]
    print(json.dumps({"tensorboard": event_files(events), "swanlab": run_folder(run)}))
