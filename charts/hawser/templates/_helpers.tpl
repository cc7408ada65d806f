{{/* What the names of all objects begin with. Leaves room for the longest suffix, "-snapshot-metadata". */}}
{{- define "hawser.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- default $full .Values.fullnameOverride | trunc 44 | trimSuffix "-" -}}
{{- end -}}

{{- define "hawser.selectorLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "hawser.labels" -}}
{{ include "hawser.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "hawser.driver" -}}csi.hawser.dev{{- end -}}

{{/* The strings "true" and "", as all of the questions below. */}}
{{- define "hawser.isShared" -}}
{{- if eq .Values.pool.scope "shared" }}true{{ end -}}
{{- end -}}

{{- define "hawser.hasFailover" -}}
{{- if .Values.failover.enabled }}true{{ end -}}
{{- end -}}

{{- define "hawser.hasSnapshots" -}}
{{- if eq (toString .Values.snapshots.enabled) "auto" -}}
{{- if .Capabilities.APIVersions.Has "snapshot.storage.k8s.io/v1" }}true{{ end -}}
{{- else if .Values.snapshots.enabled }}true{{ end -}}
{{- end -}}

{{- define "hawser.hasGroupSnapshots" -}}
{{- if not (include "hawser.hasSnapshots" .) -}}
{{- else if eq (toString .Values.groupSnapshots.enabled) "auto" -}}
{{- if .Capabilities.APIVersions.Has "groupsnapshot.storage.k8s.io/v1" }}true{{ end -}}
{{- else if .Values.groupSnapshots.enabled }}true{{ end -}}
{{- end -}}

{{/* Of a StorageClass: dict "class" and "root". */}}
{{- define "hawser.bindingMode" -}}
{{- $default := ternary "Immediate" "WaitForFirstConsumer" (eq (include "hawser.isShared" .root) "true") -}}
{{- .class.volumeBindingMode | default $default -}}
{{- end -}}

{{- define "hawser.image" -}}
{{- $tag := .root.Values.image.tag | default .root.Chart.AppVersion -}}
{{- printf "%s/%s:%s" .root.Values.image.registry .name $tag -}}
{{- end -}}

{{/* Where hawser's pages are, for metrics_listen. */}}
{{- define "hawser.pages" -}}
{{- if .Values.metrics.enabled }}insecure:[::]:{{ .Values.metrics.port }}{{ else }}unix:///run/hawser/pages.sock{{ end -}}
{{- end -}}

{{/* Programs that are started in the container, since kubelet does not reach a unix socket. Liveness is patient: on a node
     that is short of processors, killing what serves its volumes would not help. */}}
{{- define "hawser.probes" -}}
startupProbe:
  exec: {command: [/hawser, probe, live]}
  periodSeconds: 2
  timeoutSeconds: 10
  failureThreshold: 60
livenessProbe:
  exec: {command: [/hawser, probe, live]}
  periodSeconds: 20
  timeoutSeconds: 10
  failureThreshold: 6
readinessProbe:
  exec: {command: [/hawser, probe, ready]}
  periodSeconds: 10
  timeoutSeconds: 10
  failureThreshold: 2
{{- end -}}

{{/* What nothing in the controller's pod needs. */}}
{{- define "hawser.unprivileged" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* A sidecar up to its arguments, and after them. dict "root", "name" of the container and "key" in values. */}}
{{- define "hawser.sidecar" -}}
{{- $all := .root.Values.sidecars -}}
{{- $own := get $all .key -}}
- name: {{ .name }}
  image: {{ printf "%s/%s:%s" $all.registry $own.image $own.tag }}
  imagePullPolicy: {{ $all.pullPolicy }}
  securityContext:
    {{- include "hawser.unprivileged" .root | nindent 4 }}
  resources:
    {{- toYaml $own.resources | nindent 4 }}
  args:
    - --csi-address=/csi/csi.sock
    - --v={{ $all.logLevel }}
    - --timeout=60s
    - --kube-api-qps={{ $all.qps }}
    - --kube-api-burst={{ $all.burst }}
    {{- range .args }}
    - {{ . }}
    {{- end }}
    {{- range $own.args }}
    - {{ . | quote }}
    {{- end }}
{{- end -}}

{{/* One of those that only one replica's does something of. */}}
{{- define "hawser.leaderElection" -}}
--leader-election
--leader-election-lease-duration={{ .leaseDuration }}
--leader-election-renew-deadline={{ .renewDeadline }}
--leader-election-retry-period={{ .retryPeriod }}
{{- end -}}
