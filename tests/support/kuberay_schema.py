"""The fields of KubeRay's custom resources that deploy/ uses, so that a misspelled or misplaced one is found offline.

This is no copy of KubeRay's own schema, which no Python package carries: it was written after the API reference of
KubeRay 1.6 and 1.7 (ray.io/v1) and knows only what deploy/ needs, so a field that KubeRay has and this file lacks
fails here and must be added. What a cluster would also refuse, such as a rule over several fields, it cannot know.
Pod templates are passed on as they are: tests/test_deploy.py checks them against Kubernetes' own schemas.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Count = Annotated[int, Field(ge=0)]
PodTemplate = dict[str, Any]


class Part(BaseModel):
    """A part of a manifest. Unknown fields are refused, as are numbers and booleans written as another type."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(Part):
    name: str | None = None
    generateName: str | None = None
    namespace: str | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}

    @model_validator(mode="after")
    def _named(self) -> "Metadata":
        if not (self.name or self.generateName):
            raise ValueError("neither name nor generateName")
        return self


class AuthOptions(Part):
    mode: Literal["disabled", "token"]
    secretName: str | None = None


class AutoscalerOptions(Part):
    version: Literal["v1", "v2"] | None = None
    upscalingMode: Literal["Default", "Aggressive", "Conservative"] | None = None
    idleTimeoutSeconds: Count | None = None
    securityContext: dict[str, Any] = {}
    resources: dict[str, dict[str, str]] = {}
    env: list[dict[str, Any]] = []


class HeadGroup(Part):
    serviceType: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    enableIngress: bool = False
    rayStartParams: dict[str, str]
    template: PodTemplate


class WorkerGroup(Part):
    groupName: str
    replicas: Count = 0
    minReplicas: Count = 0
    maxReplicas: Count
    idleTimeoutSeconds: Count | None = None
    numOfHosts: Annotated[int, Field(ge=1)] = 1
    rayStartParams: dict[str, str]
    template: PodTemplate

    @model_validator(mode="after")
    def _ordered(self) -> "WorkerGroup":
        if not self.minReplicas <= self.replicas <= self.maxReplicas:
            raise ValueError(f"{self.groupName}: need minReplicas <= replicas <= maxReplicas")
        return self


class RayClusterSpec(Part):
    rayVersion: str
    authOptions: AuthOptions | None = None
    enableInTreeAutoscaling: bool = False
    autoscalerOptions: AutoscalerOptions | None = None
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup] = []


class SubmitterConfig(Part):
    backoffLimit: Count


class RayJobSpec(Part):
    entrypoint: str
    submissionMode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"] = "K8sJobMode"
    submitterPodTemplate: PodTemplate | None = None
    submitterConfig: SubmitterConfig | None = None
    backoffLimit: Count = 0
    activeDeadlineSeconds: Annotated[int, Field(ge=1)] | None = None
    shutdownAfterJobFinishes: bool = False
    ttlSecondsAfterFinished: Count = 0
    suspend: bool = False
    runtimeEnvYAML: str | None = None
    rayClusterSpec: RayClusterSpec


class RayServiceSpec(Part):
    serveConfigV2: str
    excludeHeadPodFromServeSvc: bool = False
    rayClusterConfig: RayClusterSpec


class RayJob(Part):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: RayJobSpec


class RayService(Part):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayService"]
    metadata: Metadata
    spec: RayServiceSpec


KINDS: dict[str, type[RayJob] | type[RayService]] = {"RayJob": RayJob, "RayService": RayService}
