{{/* Name of the release's objects. */}}
{{- define "virtual-node.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains "virtual-node" .Release.Name -}}
{{- .Release.Name -}}
{{- else -}}
{{- printf "%s-virtual-node" (.Release.Name | trunc 50 | trimSuffix "-") -}}
{{- end -}}
{{- end }}

{{/* Name of the Node. */}}
{{- define "virtual-node.node" -}}
{{- .Values.nodeName | default .Release.Name -}}
{{- end }}

{{/* Labels that select the pods. They never change, for a Deployment's selector cannot. */}}
{{- define "virtual-node.selector" -}}
app.kubernetes.io/name: virtual-node
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Labels of all objects. */}}
{{- define "virtual-node.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "virtual-node.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: tensile
{{- end }}

{{/* Name of the ServiceAccount. */}}
{{- define "virtual-node.account" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "virtual-node.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end }}

{{/* The ServiceAccount as the subject of a binding. */}}
{{- define "virtual-node.subject" -}}
- kind: ServiceAccount
  name: {{ include "virtual-node.account" . }}
  namespace: {{ .Release.Namespace }}
{{- end }}

{{/* The image, by digest or by tag. */}}
{{- define "virtual-node.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $image.repository ($image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end }}

{{/* Name of the Secret with the lower kubeconfig. */}}
{{- define "virtual-node.lowerSecret" -}}
{{- .Values.lower.kubeconfig.existingSecret | default (printf "%s-lower" (include "virtual-node.fullname" .)) -}}
{{- end }}

{{/* What a schema cannot say: values that need each other. */}}
{{- define "virtual-node.check" -}}
{{- $lower := .Values.lower.kubeconfig -}}
{{- if not .Values.image.repository -}}
{{- fail "\n\nimage.repository is not set. There is no public image yet: build one with `make image`, push it to a registry that this cluster pulls from, and give its name with --set image.repository=REGISTRY/virtual-node\n" -}}
{{- end -}}
{{- if not (or $lower.existingSecret $lower.content) -}}
{{- fail "\n\nThe kubeconfig of the lower cluster is not set. Make a Secret of it in this namespace and give its name with --set lower.kubeconfig.existingSecret=NAME, or give the file with --set-file lower.kubeconfig.content=FILE. scripts/lower-account makes an account and prints its kubeconfig\n" -}}
{{- end -}}
{{- if and $lower.existingSecret $lower.content -}}
{{- fail "\n\nlower.kubeconfig.existingSecret and lower.kubeconfig.content are both set: set one of them\n" -}}
{{- end -}}
{{- if and (eq .Values.identity.mode "kubeconfig") (not .Values.identity.kubeconfigSecret) -}}
{{- fail "\n\nidentity.mode is `kubeconfig`: name the Secret that holds it with --set identity.kubeconfigSecret=NAME\n" -}}
{{- end -}}
{{- if and .Values.hostNetwork (eq (int .Values.kubelet.port) 10250) -}}
{{- fail "\n\nhostNetwork is on and kubelet.port is 10250, which the machine's own kubelet uses: choose another, for instance --set kubelet.port=10350\n" -}}
{{- end -}}
{{- if and .Values.metrics.serviceMonitor.enabled (not .Values.metrics.service.enabled) -}}
{{- fail "\n\nmetrics.serviceMonitor.enabled needs metrics.service.enabled: a ServiceMonitor finds pods by a Service\n" -}}
{{- end -}}
{{- end }}
