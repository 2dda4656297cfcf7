{{- define "clipgate.name" -}}
{{- .Values.fullnameOverride | default .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "clipgate.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (ternary (include "clipgate.name" .) "" .Values.serviceAccount.create) -}}
{{- end -}}

{{- define "clipgate.selector" -}}
app.kubernetes.io/name: clipgate
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "clipgate.labels" -}}
{{ include "clipgate.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end -}}
