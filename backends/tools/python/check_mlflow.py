"""What MLflow's own client reads of the runs of an experiment, as JSON by model.

    check_mlflow.py ADDRESS EXPERIMENT

Needs an environment with mlflow.
"""

import json
import sys

import mlflow


def main(address, experiment):
    client = mlflow.MlflowClient(address)
    found = {"version": mlflow.__version__, "runs": {}}
    for run in client.search_runs([client.get_experiment_by_name(experiment).experiment_id]):
        history = lambda key: [[point.step, point.value] for point in client.get_metric_history(run.info.run_id, key)]
        table = [artifact.path for artifact in client.list_artifacts(run.info.run_id, "prediction")]
        found["runs"][run.info.run_name] = {
            "status": run.info.status,
            "params": run.data.params,
            "metrics": {key: history(key) for key in run.data.metrics},
            "tables": [mlflow.artifacts.load_dict(f"runs:/{run.info.run_id}/{path}") for path in table],
        }
    print(json.dumps(found))


if __name__ == "__main__":
    mlflow.set_tracking_uri(sys.argv[1])
    main(*sys.argv[1:])
