"""The fields of other people's manifests that ours use: KubeRay 1.7, the Prometheus operator, `ray up`, Prometheus.

Written by hand and short: a field that is not here cannot be used before somebody has looked it up. Where KubeRay's
CRDs are at hand, a test holds the first part against them. Pods and the like come from lightkube's models.
"""

from __future__ import annotations

from typing import Literal

from lightkube.models.core_v1 import PodTemplateSpec, ResourceRequirements, SecurityContext
from lightkube.models.meta_v1 import LabelSelector, ObjectMeta
from msgspec import Struct


class HeadGroup(Struct):
    rayStartParams: dict[str, str]
    template: PodTemplateSpec


class WorkerGroup(Struct):
    groupName: str
    replicas: int
    minReplicas: int
    maxReplicas: int
    rayStartParams: dict[str, str]
    template: PodTemplateSpec


class AuthOptions(Struct):
    mode: Literal["token", "disabled"]
    secretName: str | None = None


class AutoscalerOptions(Struct):
    version: Literal["v1", "v2"]
    upscalingMode: Literal["Default", "Aggressive", "Conservative"]
    idleTimeoutSeconds: int
    resources: ResourceRequirements
    securityContext: SecurityContext


class ClusterSpec(Struct):
    rayVersion: str
    authOptions: AuthOptions
    enableInTreeAutoscaling: bool
    autoscalerOptions: AutoscalerOptions
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup]


class JobSpec(Struct):
    entrypoint: str
    submissionMode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]
    backoffLimit: int
    preRunningDeadlineSeconds: int
    activeDeadlineSeconds: int
    shutdownAfterJobFinishes: bool
    ttlSecondsAfterFinished: int
    rayClusterSpec: ClusterSpec


class UpgradeStrategy(Struct):
    type: Literal["NewCluster", "NewClusterWithIncrementalUpgrade", "None"]


class ServiceSpec(Struct):
    serveConfigV2: str
    upgradeStrategy: UpgradeStrategy
    excludeHeadPodFromServeSvc: bool
    rayClusterConfig: ClusterSpec


class RayCluster(Struct):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: ObjectMeta
    spec: ClusterSpec


class RayJob(Struct):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: ObjectMeta
    spec: JobSpec


class RayService(Struct):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayService"]
    metadata: ObjectMeta
    spec: ServiceSpec


class Relabeling(Struct):
    sourceLabels: list[str]
    targetLabel: str


class PodMetricsEndpoint(Struct):
    port: str
    relabelings: list[Relabeling] | None = None


class PodMonitorSpec(Struct):
    selector: LabelSelector
    podMetricsEndpoints: list[PodMetricsEndpoint]


class PodMonitor(Struct):
    apiVersion: Literal["monitoring.coreos.com/v1"]
    kind: Literal["PodMonitor"]
    metadata: ObjectMeta
    spec: PodMonitorSpec


class Targets(Struct):
    targets: list[str]
    labels: dict[str, str] | None = None


class SecretKey(Struct):
    name: str
    key: str


class Credentials(Struct):
    credentials: SecretKey


class ScrapeSpec(Struct):
    metricsPath: str
    staticConfigs: list[Targets]
    authorization: Credentials


class ScrapeConfig(Struct):
    apiVersion: Literal["monitoring.coreos.com/v1alpha1"]
    kind: Literal["ScrapeConfig"]
    metadata: ObjectMeta
    spec: ScrapeSpec


class LocalProvider(Struct):
    type: Literal["local"]
    head_ip: str
    worker_ips: list[str]


class AwsProvider(Struct):
    type: Literal["aws"]
    region: str
    availability_zone: str
    cache_stopped_nodes: bool


class Auth(Struct):
    ssh_user: str
    ssh_private_key: str | None = None


class Docker(Struct):
    image: str
    container_name: str
    pull_before_run: bool
    run_options: list[str]


class Disk(Struct):
    VolumeSize: int
    VolumeType: Literal["gp2", "gp3", "io1", "io2"]


class BlockDevice(Struct):
    DeviceName: str
    Ebs: Disk


class Market(Struct):
    MarketType: Literal["spot", "capacity-block"]


class Ec2Instance(Struct):
    """As boto3's `create_instances` takes them."""

    InstanceType: str
    SecurityGroupIds: list[str]
    BlockDeviceMappings: list[BlockDevice]
    InstanceMarketOptions: Market | None = None


class NodeType(Struct):
    resources: dict[str, int]
    node_config: Ec2Instance
    min_workers: int | None = None
    max_workers: int | None = None


class RayUpLocal(Struct):
    cluster_name: str
    provider: LocalProvider
    auth: Auth
    docker: Docker
    file_mounts: dict[str, str]
    head_start_ray_commands: list[str]
    worker_start_ray_commands: list[str]


class RayUpAws(Struct):
    cluster_name: str
    max_workers: int
    upscaling_speed: float
    idle_timeout_minutes: int
    provider: AwsProvider
    auth: Auth
    docker: Docker
    file_mounts: dict[str, str]
    initialization_commands: list[str]
    setup_commands: list[str]
    head_setup_commands: list[str]
    worker_setup_commands: list[str]
    head_node_type: str
    available_node_types: dict[str, NodeType]
    head_start_ray_commands: list[str]
    worker_start_ray_commands: list[str]


class Global(Struct):
    scrape_interval: str


class CredentialsFile(Struct):
    credentials_file: str


class ScrapeJob(Struct):
    job_name: str
    static_configs: list[Targets]
    authorization: CredentialsFile | None = None


class Prometheus(Struct, rename={"global_": "global"}):
    global_: Global
    scrape_configs: list[ScrapeJob]
