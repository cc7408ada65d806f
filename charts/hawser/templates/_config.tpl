{{/* config.toml of the controller's pod. */}}
{{- define "hawser.controllerConfig" -}}
mode = "controller"
profile = "kubernetes"
endpoint = "unix:///csi/csi.sock"
metrics_listen = {{ include "hawser.pages" . | quote }}
log_level = {{ .Values.log.level | quote }}
log_format = {{ .Values.log.format | quote }}
{{- if not .Values.csiDriver.attachRequired }}
attach = "node"
{{- end }}

[kubernetes]
enabled = true
namespace = {{ .Release.Namespace | quote }}
name = {{ include "hawser.fullname" . | quote }}
{{- if or .Values.certificates.given.controllerSecret .Values.failover.heartbeatMs }}

[agent]
{{- end }}
{{- with .Values.failover.heartbeatMs }}
heartbeat_ms = {{ . | int64 }}
{{- end }}
{{- if .Values.certificates.given.controllerSecret }}
ca = "/etc/hawser/certificates/ca.crt"
cert = "/etc/hawser/certificates/tls.crt"
key = "/etc/hawser/certificates/tls.key"
{{- end }}
{{- if include "hawser.hasFailover" . }}

[failover]
enabled = true
{{- range $key, $value := .Values.failover.settings }}
{{ $key }} = {{ if kindIs "string" $value }}{{ $value | quote }}{{ else }}{{ $value | int64 }}{{ end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* config.toml of the nodes' pods. */}}
{{- define "hawser.nodeConfig" -}}
mode = "node"
profile = "kubernetes"
endpoint = "unix://{{ .Values.node.kubeletPath }}/plugins/{{ include "hawser.driver" . }}/csi.sock"
kubelet_registration_dir = "{{ .Values.node.kubeletPath }}/plugins_registry"
state_dir = {{ .Values.node.statePath | quote }}
metrics_listen = {{ include "hawser.pages" . | quote }}
log_level = {{ .Values.log.level | quote }}
log_format = {{ .Values.log.format | quote }}
{{- if not .Values.csiDriver.attachRequired }}
attach = "node"
{{- end }}

[kubernetes]
enabled = true
namespace = {{ .Release.Namespace | quote }}
name = {{ include "hawser.fullname" . | quote }}

[agent]
listen = "[::]:9809"
{{- with .Values.failover.heartbeatMs }}
heartbeat_ms = {{ . | int64 }}
{{- end }}
{{- if .Values.certificates.given.nodePath }}
ca = "/etc/hawser/certificates/ca.crt"
cert = "/etc/hawser/certificates/tls.crt"
key = "/etc/hawser/certificates/tls.key"
{{- end }}

[[backend]]
{{- if include "hawser.isShared" . }}
name = {{ .Values.pool.name | quote }}
{{- end }}
directory = {{ .Values.pool.path | quote }}
scope = {{ .Values.pool.scope | quote }}
{{- with .Values.pool.imageSize }}
image_bytes = {{ . | quote }}
{{- end }}
{{- with .Values.pool.reserve }}
reserve_bytes = {{ . | quote }}
{{- end }}
{{- with .Values.pool.maxVolumesPerNode }}
max_volumes_per_node = {{ . | int64 }}
{{- end }}
{{- if .Values.pool.allowForkOnlyFence }}
allow_fork_only_fence = true
{{- end }}
{{- end -}}
