{{/* The arguments of the process. e2e/tests/chart lets the program read them. */}}
{{- define "virtual-node.args" -}}
- --node-name={{ include "virtual-node.node" . }}
{{- with .Values.clusterName }}
- --cluster-name={{ . }}
{{- end }}
- --lower-kubeconfig=/etc/tensile/lower/{{ .Values.lower.kubeconfig.key }}
{{- with .Values.lower.context }}
- --lower-context={{ . }}
{{- end }}
{{- range $key, $value := .Values.node.labels }}
- {{ printf "--node-label=%s=%s" $key $value | quote }}
{{- end }}
{{- range .Values.node.taints }}
- {{ printf "--node-taint=%s" . | quote }}
{{- end }}
- --lower-unreachable={{ .Values.node.lowerUnreachable }}
- --evict-after={{ .Values.node.evictAfter }}
- --namespaces={{ .Values.pods.namespaces }}
{{- range .Values.pods.adoptNamespaces }}
- --adopt-namespace={{ . }}
{{- end }}
{{- with .Values.pods.lowerSchedulerName }}
- --lower-scheduler-name={{ . }}
{{- end }}
- --lower-events={{ .Values.pods.lowerEvents }}
{{- with .Values.pods.upperApi }}
- {{ printf "--upper-api-for-pods=%s" . | quote }}
{{- end }}
- --identity={{ .Values.identity.mode }}
- --identity-secret-namespace={{ .Release.Namespace }}
{{- if eq .Values.identity.mode "kubeconfig" }}
- --identity-kubeconfig=/etc/tensile/identity/kubeconfig
{{- end }}
{{- with .Values.identity.expirationSeconds }}
- --identity-expiration-seconds={{ int . }}
{{- end }}
- --kubelet-address=0.0.0.0:{{ .Values.kubelet.port }}
{{- if .Values.kubelet.tlsSecret }}
- --kubelet-tls-cert-file=/etc/tensile/kubelet-tls/tls.crt
- --kubelet-tls-key-file=/etc/tensile/kubelet-tls/tls.key
{{- end }}
{{- if .Values.grpc.tlsSecret }}
- --grpc-address=0.0.0.0:{{ .Values.grpc.port }}
- --grpc-cert-file=/etc/tensile/grpc-tls/tls.crt
- --grpc-key-file=/etc/tensile/grpc-tls/tls.key
- --grpc-client-ca-file=/etc/tensile/grpc-tls/ca.crt
{{- else }}
- --grpc-address=127.0.0.1:{{ .Values.grpc.port }}
{{- end }}
- --admin-address=0.0.0.0:{{ .Values.metrics.port }}
- {{ printf "--log-level=%s" .Values.log.level | quote }}
- --log-format={{ .Values.log.format }}
{{- range .Values.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end }}
