"""The manifests: valid by the schemas of Kubernetes and of two operators, and true to the code."""

import re
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from cloudcoil.models.keda.v1alpha1 import ScaledObject, TriggerAuthentication
from cloudcoil.models.prometheus_operator.v1 import PrometheusRule, ServiceMonitor

from relay.keys import JOBS_BACKGROUND, JOBS_GROUP, JOBS_INTERACTIVE
from relay.settings import Settings

FOLDER = Path(__file__).resolve().parents[2] / "ops/kubernetes"
VERSIONS = ("1.30", "1.33", "1.37")
CUSTOM = {
    "ScaledObject": ScaledObject,
    "TriggerAuthentication": TriggerAuthentication,
    "ServiceMonitor": ServiceMonitor,
}
KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
RESOURCES = [
    document
    for file in KUSTOMIZATION["resources"]
    for document in yaml.safe_load_all((FOLDER / file).read_text())
]
NAMED = {(document["kind"], document["metadata"]["name"]): document for document in RESOURCES}


def native() -> list[Any]:
    """What Kubernetes itself knows."""
    return [
        pytest.param(d, id=f"{d['kind']} {d['metadata']['name']}")
        for d in RESOURCES
        if d["kind"] not in CUSTOM
    ]


def custom() -> list[Any]:
    """What operators bring."""
    return [
        pytest.param(d, id=f"{d['kind']} {d['metadata']['name']}") for d in RESOURCES if d["kind"] in CUSTOM
    ]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("document", native())
def test_kubernetes_takes_it(document: dict[str, Any], version: str) -> None:
    """By its own schema, from the oldest version that is promised on; unknown fields are errors."""
    kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("document", custom())
def test_the_operators_take_it(document: dict[str, Any]) -> None:
    """By the model of the custom resource, which must know every field."""
    model = CUSTOM[document["kind"]].model_validate(document)
    assert model.model_dump(by_alias=True, exclude_unset=True, mode="json") == document


def test_the_check_of_custom_resources_finds_faults() -> None:
    """The test above can fail: a field that nobody knows does not come back."""
    document = {**NAMED["ScaledObject", "relay-worker"]}
    document["spec"] = {**document["spec"], "minReplicas": 1}
    model = ScaledObject.model_validate(document)
    assert model.model_dump(by_alias=True, exclude_unset=True, mode="json") != document


def test_the_operator_takes_the_rules() -> None:
    """The page's command wraps all of them, and changes none."""
    command = re.search(
        r"^    (\(printf.*?\)) \| kubectl", (FOLDER / "README.md").read_text(), re.DOTALL | re.MULTILINE
    )
    assert command is not None
    done = subprocess.run(
        ["sh", "-c", command[1]], cwd=FOLDER.parents[1], capture_output=True, check=True, timeout=50
    )
    wrapped = yaml.safe_load(done.stdout)
    model = PrometheusRule.model_validate(wrapped)
    assert model.model_dump(by_alias=True, exclude_unset=True, mode="json") == wrapped
    files = sorted((FOLDER.parent / "prometheus/rules").glob("*.yml"))
    groups = [group for file in files for group in yaml.safe_load(file.read_text())["groups"]]
    assert wrapped["spec"]["groups"] == groups


def test_every_file_is_part_of_it() -> None:
    """A manifest that nobody applies is a mistake."""
    files = {file.name for file in FOLDER.glob("*.yaml")} - {"kustomization.yaml"}
    assert files == set(KUSTOMIZATION["resources"])


def pod(name: str) -> Any:
    """The pod of one of our two deployments."""
    return NAMED["Deployment", name]["spec"]["template"]["spec"]


@pytest.mark.parametrize("name", ["relay-api", "relay-worker"])
def test_containers_are_locked_down(name: str) -> None:
    """Nobody in particular, no capability, a root file system that takes no writes, a memory limit."""
    (container,) = pod(name)["containers"]
    assert pod(name)["securityContext"]["runAsNonRoot"]
    assert pod(name)["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["limits"]["memory"]


@pytest.mark.parametrize("name", ["relay-api", "relay-worker"])
def test_settings_are_settings_and_secrets_are_references(name: str) -> None:
    """Every variable is one that relay reads; what opens doors is never in a manifest."""
    (container,) = pod(name)["containers"]
    assert all("value" not in variable for variable in container["env"])
    assert ("Secret", "relay-secrets") not in NAMED
    given = set(NAMED["ConfigMap", "relay-settings"]["data"]) | {
        variable["name"] for variable in container["env"]
    }
    assert given <= {f"RELAY_{field.upper()}" for field in Settings.model_fields}
    readme = (FOLDER / "README.md").read_text()
    used = {key for document in RESOURCES for key in re.findall(r"'key': '([\w-]+)'", str(document))}
    missing = {key for key in used if f"--from-literal={key}=" not in readme}
    assert missing <= {"upstream-api-key"}  # optional


def test_processes_start_with_what_they_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ConfigMap and the page's secret, as they stand, are settings that relay takes."""
    secret = dict(re.findall(r"--from-literal=([\w-]+)=(\S+)", (FOLDER / "README.md").read_text()))
    given = dict(NAMED["ConfigMap", "relay-settings"]["data"])
    for name in ("relay-api", "relay-worker"):
        for variable in pod(name)["containers"][0]["env"]:
            reference = variable["valueFrom"]["secretKeyRef"]
            if not reference.get("optional"):
                given[variable["name"]] = secret[reference["key"]]
    for variable, value in given.items():
        monkeypatch.setenv(variable, value)
    settings = Settings(_env_file=None)
    settings.check_exposed("0.0.0.0")
    assert f"prometheus:{secret['metrics-key']}" in [key.get_secret_value() for key in settings.api_keys]


def test_there_is_time_to_drain() -> None:
    """SIGKILL comes after the drain that the settings allow."""
    values = NAMED["ConfigMap", "relay-settings"]["data"]
    settings = Settings(drain_s=values["RELAY_DRAIN_S"], worker_drain_s=values["RELAY_WORKER_DRAIN_S"])
    before_s = pod("relay-api")["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod("relay-api")["terminationGracePeriodSeconds"] > before_s + settings.drain_s
    grace_s = pod("relay-worker")["terminationGracePeriodSeconds"]
    assert grace_s > settings.worker_drain_s + settings.lease_s


def test_keda_looks_at_the_streams_that_workers_read() -> None:
    """The names are the code's; every stream is looked at by its length, which no cancel makes nil."""
    triggers = [trigger["metadata"] for trigger in NAMED["ScaledObject", "relay-worker"]["spec"]["triggers"]]
    assert {trigger["stream"] for trigger in triggers} == {JOBS_INTERACTIVE, JOBS_BACKGROUND}
    assert {trigger["stream"] for trigger in triggers if "streamLength" in trigger} == {
        JOBS_INTERACTIVE,
        JOBS_BACKGROUND,
    }
    (lag,) = (trigger for trigger in triggers if "lagCount" in trigger)
    assert (lag["stream"], lag["consumerGroup"]) == (JOBS_INTERACTIVE, JOBS_GROUP)
    slots = int(pod("relay-worker")["containers"][0]["args"][2])
    assert all(int(trigger["streamLength"]) < slots for trigger in triggers if "streamLength" in trigger)


@pytest.mark.parametrize("name", ["relay-api", "relay-worker"])
def test_monitors_find_their_services_and_services_their_pods(name: str) -> None:
    """By labels and by the names of ports; the Service is called as the job that rules ask for."""
    monitor, service = NAMED["ServiceMonitor", name], NAMED["Service", name]
    labels = service["metadata"]["labels"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
    ports = {port["name"]: port["targetPort"] for port in service["spec"]["ports"]}
    assert monitor["spec"]["endpoints"][0]["port"] in ports
    template = NAMED["Deployment", name]["spec"]["template"]
    assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    (container,) = template["spec"]["containers"]
    assert set(ports.values()) <= {port["name"] for port in container["ports"]}
    assert f'job="{name}"' in (FOLDER.parent / "prometheus/rules/alerts.yml").read_text()
