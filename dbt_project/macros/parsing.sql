{#
  SQL that takes a message apart as declared (declaration.sql). In the boundary, `messages` is raw, `parsed.event` the
  JSON, `fields` its members on the first level, and `canonical.<field>` the canonical form of a masked field.
#}

{# Which event type a queue's messages are of. #}
{% macro event_type() -%}
    case
        {%- for name, it in declared_events().items() %}
        when messages.queue in ({{ quoted_list(it.queues) }}) then '{{ name }}'
        {%- endfor %}
    end
{%- endmacro %}


{# An expression for the message's event type: the same for all of them, or one for each. #}
{% macro by_event_type(expressions) -%}
    {%- set events = declared_events() -%}
    {%- if expressions | length == events | length and expressions.values() | unique | list | length == 1 -%}
        {{ expressions.values() | first }}
    {%- else -%}
        case
            {%- for name, expression in expressions.items() %}
            when messages.queue in ({{ quoted_list(events[name].queues) }}) then {{ expression }}
            {%- endfor %}
        end
    {%- endif -%}
{%- endmacro %}


{% macro whole_message() -%} masking.parse_json(messages.body) {%- endmacro %}


{# The message as jsonb, out of its envelope. #}
{% macro parsed_event() -%}
    {%- set whole, expressions = whole_message(), {} -%}
    {%- for name, it in declared_events().items() -%}
        {%- do expressions.update({name: {
            'none': whole, 'sns': 'masking.parse_json(' ~ whole ~ " ->> 'Message')", 'eventbridge': whole ~ " -> 'detail'"
        }[it.envelope]}) -%}
    {%- endfor -%}
    {{ by_event_type(expressions) }}
{%- endmacro %}


{# The members of the message that fields are read from, each taken out once; null where the JSON has null. #}
{% macro first_level() -%}
    {%- set members = [] -%}
    {%- for field in declared_fields(masked=false) + declared_fields(masked=true) -%}
        {%- for it in field.events.values() if it.path | length == 1 and it.path[0] not in members -%}
            {%- do members.append(it.path[0]) -%}
        {%- endfor -%}
    {%- endfor -%}
    {%- if not members -%}{{ return('unnest(array[parsed.event]) as fields (event)') }}{%- endif -%}
    {{ members_of_event(members) }}
{%- endmacro %}


{% macro members_by_record(members) -%}
    jsonb_to_record(
    case when jsonb_typeof(parsed.event) = 'object' then parsed.event else '{}' end
) as fields ({% for member in members %}{{ adapter.quote(member) }} text{{ ', ' if not loop.last }}{% endfor %})
{%- endmacro %}


{% macro field_text(field) -%}
    {%- if field.path | length == 1 -%}{{ return('fields.' ~ adapter.quote(field.path[0])) }}{%- endif -%}
    {{ return('(parsed.event #>> array[' ~ quoted_list(field.path) ~ '])') }}
{%- endmacro %}


{% macro field_json_type(field) -%}
    {%- if field.path | length == 1 -%}
        {{ return("jsonb_typeof(parsed.event -> '" ~ field.path[0] ~ "')") }}
    {%- endif -%}
    {{ return('jsonb_typeof(parsed.event #> array[' ~ quoted_list(field.path) ~ '])') }}
{%- endmacro %}


{# The text of a field that each event type may have elsewhere. #}
{% macro text_of(field_by_event) -%}
    {%- set texts = {} -%}
    {%- for event, field in field_by_event.items() -%}{%- do texts.update({event: field_text(field)}) -%}{%- endfor -%}
    {{ return(by_event_type(texts)) }}
{%- endmacro %}


{# Whose message it is. #}
{% macro subject() -%}
    {%- set subjects = {} -%}
    {%- for event, it in declared_events().items() -%}{%- do subjects.update({event: it.fields[it.subject]}) -%}{%- endfor -%}
    {{ return(text_of(subjects)) }}
{%- endmacro %}


{# What is published of an open field. #}
{% macro open_value(field) -%}
    {%- set text = open_text(field, text_of(field.events)) -%}
    {%- if field.type == 'text' -%} {{ text }}
    {%- elif field.type == 'version' -%} {{ pack_version('(' ~ text ~ ')') }}
    {%- elif field.type == 'timestamp' -%} masking.parse_timestamp({{ text }})
    {%- else -%} ({{ text }})::{{ {'integer': 'bigint', 'boolean': 'boolean'}[field.type] }}
    {%- endif -%}
{%- endmacro %}


{# Blanks around a text do not count, as in a masked one and in whom an erasure finds: " p1" would be another user than
   "p1". Blank text is null, of whatever type, which it can only be where the field is not required. #}
{% macro open_text(field, text) -%}
    {%- set may_be_blank = field.type == 'text' or field.type == 'version' and not field.required -%}  {#- no time is null anyway -#}
    {{ return('nullif(' ~ trimmed(text) ~ ", '')" if may_be_blank else text) }}
{%- endmacro %}


{% macro trimmed(text) -%} btrim({{ text }}, E' \t\n\r\x0B\f') {%- endmacro %}


{% macro is_blank(text) -%} {{ trimmed(text) }} = '' {%- endmacro %}


{# Why a message is not accepted, or null when it is; the first reason found. Never a value. #}
{% macro rejection_reason() -%}
    {%- set events = declared_events() -%}
    case
        when {{ event_type() }} is null then 'unknown_queue'
        {%- for it in events.values() if it.envelope != 'none' %}
        when parsed.event is null and messages.queue in ({{ quoted_list(it.queues) }}) and {{ whole_message() }} is not null then
            {%- if it.envelope == 'sns' %}
            case
                when {{ whole_message() }} ->> 'Message' is null then 'not_in_sns_envelope'
                when masking.is_encoded({{ whole_message() }} ->> 'Message') then 'base64'
                else 'not_json'
            end
            {%- else %}
            'not_in_{{ it.envelope }}_envelope'
            {%- endif %}
        {%- endfor %}
        when parsed.event is null then case when masking.is_encoded(messages.body) then 'base64' else 'not_json' end
        when jsonb_typeof(parsed.event) <> 'object' then 'not_an_object'
        when messages.sent_at is null then 'missing_sent_at'
        {%- for name, it in events.items() %}
        {%- if events | length > 1 %}
        when messages.queue in ({{ quoted_list(it.queues) }}) then case
        {%- endif %}
        {%- for field in it.fields.values() %}
        {{- reasons_of(field) }}
        {%- endfor %}
        {{- exposure_in(it) }}
        {%- if events | length > 1 %}
        end
        {%- endif %}
        {%- endfor %}
    end
{%- endmacro %}


{% macro reasons_of(field) -%}
    {%- set text, json_type = field_text(field), field_json_type(field) -%}
    {%- set json_types = {'integer': 'number', 'boolean': 'boolean'} -%}
    {%- set is_there = '' if field.required else ' and not ' ~ is_blank(text) -%}
    {%- if field.required %}
        when {{ text }} is null then 'missing_{{ field.name }}'
    {%- endif %}
        when {{ json_type }} <> '{{ json_types.get(field.type, 'string') }}' and {{ text }} is not null
            then '{{ field.name }}_not_{{ {'version': 'text', 'timestamp': 'text'}.get(field.type, field.type) }}'
    {%- if field.required and field.type in ('text', 'version', 'timestamp') %}
        when {{ 'canonical.' ~ field.name ~ ' is null' if field.masked_as else is_blank(text) }} then 'missing_{{ field.name }}'
    {%- endif %}
    {%- if field.type == 'text' %}
        when length({{ text }}) > {{ field.longest }} then '{{ field.name }}_too_long'
    {%- elif field.type == 'version' %}
        {#- up to 2146.999.999: what fits into an integer #}
        when {{ text }} !~ '^0*([0-9]{1,3}|1[0-9]{3}|20[0-9]{2}|21[0-3][0-9]|214[0-6])(\.0*[0-9]{1,3}){0,2}$'{{ is_there }} then
            case when {{ text }} ~ '^[0-9]+(\.[0-9]+){0,2}$' then '{{ field.name }}_out_of_range' else '{{ field.name }}_malformed' end
    {%- elif field.type == 'integer' %}
        when {{ text }} !~ '^-?[0-9]{1,18}$' then
            case when {{ text }} ~ '^-?[0-9]+$' then '{{ field.name }}_out_of_range' else '{{ field.name }}_not_integer' end
    {%- elif field.type == 'timestamp' %}
        when {{ text }} is not null and masking.parse_timestamp({{ text }}) is null{{ is_there }} then '{{ field.name }}_malformed'
    {%- endif %}
{%- endmacro %}


{# An app that puts the device id or the address where analysts can read it: as the message has it, or as it is
   published. What stands for "none" gives nothing away. #}
{% macro exposure_in(event) -%}
    {%- for field in event.fields.values() if field.masked_as %}
        {%- set found, canonical = [], 'canonical.' ~ field.name -%}
        {%- for open in event.fields.values() if not open.masked_as -%}
            {%- set text = field_text(open) -%}
            {%- if open.type == 'version' -%}
                {#- asked first: only numbers and dots can be in it, and no whole address #}
                {%- set can_be = canonical ~ " like 'raw:%'" if field.form == 'address' else 'ltrim(' ~ canonical ~ ", '.0123456789') = ''" -%}
                {%- set published = published_text(open, '(' ~ pack_version(open_text(open, text)) ~ ')') -%}
                {%- do found.append(can_be ~ ' and (' ~ exposes([text, published], canonical, field.form) ~ ')') -%}
            {%- elif open.type == 'timestamp' -%}
                {%- set published = published_text(open, 'masking.parse_timestamp(' ~ text ~ ')') -%}
                {%- do found.append(exposes([text, published], canonical, field.form)) -%}
            {%- else -%}
                {%- do found.append(exposes([text], canonical, field.form)) -%}
            {%- endif -%}
        {%- endfor %}
        when ({{ found | join(' or ') }}) and not ({{ is_placeholder(field) }})
            then 'exposes_plain_value'
    {%- endfor %}
{%- endmacro %}


{# Whether one of these texts has the value in it: the verdict and its proof ask this alike. #}
{% macro exposes(texts, canonical, form) -%}
    {%- for text in texts %} masking.exposes({{ text }}, {{ canonical }}, '{{ form }}') {{- ' or ' if not loop.last }} {%- endfor -%}
{%- endmacro %}


{# What is published of an open field, as a text that is the same in every session. #}
{% macro published_text(field, value) -%}
    {{ return({
        'version': 'analytics.decode_app_version(' ~ value ~ ')', 'timestamp': 'masking.printed_timestamp(' ~ value ~ ')'
    }.get(field.type, value ~ '::text')) }}
{%- endmacro %}


{# What is looked for only where there is no event, or something is missing in it: an envelope that is not declared, and
   what else may have come in its place. #}
{% macro reason_with_envelopes() -%}
    {%- set around = {} -%}
    {%- for name, it in declared_events().items() -%}
        {%- set names = it.fields.values() | selectattr('required') | map(attribute='path') | map('first') | unique -%}
        {%- do around.update({name: 'masking.is_around(parsed.event, array[' ~ quoted_list(names) ~ '])'}) -%}
    {%- endfor -%}
    case
        when verdict.reason like 'missing\_%' or verdict.reason = 'not_an_object' then coalesce(
            masking.not_an_event(parsed.event), case when {{ by_event_type(around) }} then 'in_another_object' end, verdict.reason
        )
        when verdict.reason like 'not\_in\_%'
            then coalesce(masking.not_an_event({{ whole_message() }}), verdict.reason)
        else verdict.reason
    end
{%- endmacro %}


{# M.m.p as one integer that sorts as versions do: M * 1000000 + m * 1000 + p; a part left out is 0. #}
{% macro pack_version(version) -%}
    split_part({{ version }}, '.', 1)::integer * 1000000
    + coalesce(nullif(split_part({{ version }}, '.', 2), ''), '0')::integer * 1000
    + coalesce(nullif(split_part({{ version }}, '.', 3), ''), '0')::integer
{%- endmacro %}
