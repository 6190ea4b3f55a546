{#
  The events as dbt_project.yml declares them (vars: kinds, events). Everything that depends on a field starts from here.
  A declaration that cannot be right stops every command, before anything is built: it is checked whenever dbt reads the
  project, which it does after each change of these vars, and when a run starts, since dbt that stays (follow.py) reads
  the vars again and not the project; and not again for each model that runs.
#}
{% macro declared_events() -%} {{ return(completed_events() if execute else checked_events()) }} {%- endmacro %}


{% macro completed_events() -%}
    {%- set kinds, events = var('kinds'), {} -%}
    {%- for name, it in var('events').items() -%}
        {%- set fields = {} -%}
        {%- for field, declared in it.fields.items() -%}
            {%- set kind = kinds[declared.masked_as] if 'masked_as' in declared else {} -%}
            {%- do fields.update({field: {
                'name': field, 'type': declared.get('type', 'text'), 'masked_as': declared.get('masked_as'),
                'longest': declared.get('longest'), 'required': declared.get('required', false),
                'path': declared.get('path', field).split('.'), 'form': kind.get('form'), 'none': kind.get('none', []),
            }}) -%}
        {%- endfor -%}
        {%- do events.update({name: {
            'queues': it.queues, 'model': it.model, 'subject': it.subject, 'fields': fields,
            'envelope': it.get('envelope', 'none'), 'shown_to_the': it.get('shown_to_the', 'second'),
        }}) -%}
    {%- endfor -%}
    {{ return(events) }}
{%- endmacro %}


{% macro checked_events() -%}
    {%- do check_each_declaration() -%}
    {%- set events = completed_events() -%}
    {%- do check_together(events) -%}
    {{ return(events) }}
{%- endmacro %}


{# What is declared, part by part. #}
{% macro check_each_declaration() -%}
    {%- set kinds, taken = var('kinds'), taken_names() -%}
    {%- do declared_as('vars, kinds', kinds) -%}
    {%- do declared_as('vars, events', var('events')) -%}
    {%- for kind, it in kinds.items() -%}
        {%- do declared_as('kind ' ~ kind, it, required=['form'], optional=['none']) -%}
        {%- do one_of('kind ' ~ kind, 'form', it.form, ['address', 'identifier', 'text', 'exact']) -%}
        {%- do plain_name('kind ' ~ kind, kind, taken) -%}
        {%- do texts('kind ' ~ kind, 'none', it.get('none', []), '(?s).*\\S.*', 'a list of texts, and none blank: those are missing') -%}
    {%- endfor -%}
    {%- for name, it in var('events').items() -%}
        {%- set where = 'event ' ~ name -%}
        {%- do plain_name(where, name, taken) -%}
        {%- do declared_as(where, it, required=['queues', 'model', 'subject', 'fields'], optional=['envelope', 'shown_to_the']) -%}
        {%- do texts(where, 'queues', it.queues, '[A-Za-z0-9_-]{1,80}([.]fifo)?', "a list of queues' names") -%}
        {%- if not it.queues -%}{%- do wrong(where, 'queues: of which one are its messages?') -%}{%- endif -%}
        {%- do texts(where, 'model', [it.model], '[a-z0-9_]+', 'the name of a model') -%}
        {%- do texts(where, 'subject', [it.subject], '(?s).*', 'the name of a field') -%}
        {%- do declared_as(where ~ ', fields', it.fields) -%}
        {%- for field, declared in it.fields.items() -%}
            {%- do plain_name(where ~ ', field ' ~ field, field, taken) -%}
            {%- do check_field(where ~ ', field ' ~ field, field, declared, kinds) -%}
        {%- endfor -%}
    {%- endfor -%}
{%- endmacro %}


{% macro check_field(where, name, declared, kinds) -%}
    {%- do declared_as(where, declared) -%}
    {%- set masked = 'masked_as' in declared -%}
    {%- do declared_as(where, declared, required=['masked_as' if masked else 'type'], optional=['path', 'required', 'longest']) -%}
    {%- if masked -%}
        {%- do one_of(where, 'masked_as', declared.masked_as, kinds) -%}
    {%- else -%}
        {%- do one_of(where, 'type', declared.type, ['text', 'version', 'integer', 'boolean', 'timestamp']) -%}
    {%- endif -%}
    {%- set type = 'text' if masked else declared.type -%}
    {%- if declared.get('required', false) is not boolean -%}{%- do wrong(where, 'required is true or false') -%}{%- endif -%}
    {%- set path = declared.get('path', name) -%}
    {%- set path = path.split('.') if path is string else [path] -%}
    {%- do texts(where, 'path', path, "[^'\"{},\\\\]+", 'names with dots between, without quotes, commas and braces') -%}
    {%- if path | length == 1 and path[0].encode() | length > 63 -%}  {#- it becomes a column's name -#}
        {%- do wrong(where, 'path: ' ~ path[0] ~ ' is longer than the 63 bytes that PostgreSQL takes of a name') -%}
    {%- endif -%}
    {%- if type == 'text' and not (declared.get('longest') is integer and 0 < declared.longest <= 1048576) -%}
        {%- do wrong(where, 'longest: how many characters may it have? (A message has a million at most.)') -%}
    {%- elif type != 'text' and 'longest' in declared -%}
        {%- do wrong(where, 'longest is for text, and this is of type ' ~ type) -%}
    {%- endif -%}
{%- endmacro %}


{# What was not given, completed; and how the parts go together. #}
{% macro check_together(events) -%}
    {%- set queues, models, columns, masked = [], [], {}, [] -%}
    {%- for name, it in events.items() -%}
        {%- set where = 'event ' ~ name -%}
        {%- do one_of(where, 'envelope', it.envelope, ['none', 'sns', 'eventbridge']) -%}
        {%- do one_of(where, 'shown_to_the', it.shown_to_the, ['second', 'minute', 'hour', 'day']) -%}
        {%- do only_once(where, 'the queue', it.queues, queues) -%}
        {%- do only_once(where, 'the model', [it.model], models) -%}
        {%- for field in it.fields.values() -%}
            {%- do same_everywhere(where ~ ', field ' ~ field.name, field.name, field, columns) -%}
        {%- endfor -%}
        {%- do no_path_inside_another(where, it.fields) -%}
        {%- set subject = it.fields.get(it.subject) -%}
        {%- if not subject or subject.masked_as or subject.type != 'text' or not subject.required -%}
            {%- do wrong(where, 'subject: ' ~ it.subject ~ ' is not one of its fields that is open, text and required') -%}
        {%- elif subject.longest > 640 -%}  {#- of four bytes each; PostgreSQL would refuse the row, and so fail the build -#}
            {%- do wrong(where, 'subject: ' ~ it.subject ~ ' is in an index, which takes no more than 640 characters (longest)') -%}
        {%- endif -%}
        {%- do masked.extend(it.fields.values() | selectattr('masked_as')) -%}
    {%- endfor -%}
    {%- if not masked -%}{%- do wrong('vars, events', 'no field is masked_as a kind, so there is nothing that this project is for') -%}{%- endif -%}
{%- endmacro %}


{# What makes a declaration wrong. #}
{% macro wrong(where, what) -%}
    {%- do exceptions.raise_compiler_error('dbt_project.yml, ' ~ where ~ ': ' ~ what ~ '.') -%}
{%- endmacro %}

{% macro declared_as(where, it, required=[], optional=none) -%}
    {%- if it is not mapping or not it -%}{%- do wrong(where, 'nothing is declared') -%}{%- endif -%}
    {%- for key in required if key not in it -%}
        {%- do wrong(where, key ~ ' is missing' ~ (' (or masked_as, with a kind)' if key == 'type')) -%}
    {%- endfor -%}
    {%- for key in it if optional is not none and key not in required + optional -%}
        {%- do wrong(where, key ~ ' is unknown; there are ' ~ (required + optional) | join(', ')) -%}
    {%- endfor -%}
{%- endmacro %}

{% macro one_of(where, key, value, values) -%}
    {%- if value not in values | list -%}
        {%- do wrong(where, key ~ ': ' ~ value ~ ' is not one of ' ~ values | join(', ')) -%}
    {%- endif -%}
{%- endmacro %}

{% macro only_once(where, what, names, seen) -%}
    {%- for name in names -%}
        {%- if name in seen -%}{%- do wrong(where, what ~ ' ' ~ name ~ ' is declared twice') -%}{%- endif -%}
        {%- do seen.append(name) -%}
    {%- endfor -%}
{%- endmacro %}

{% macro plain_name(where, name, taken) -%}
    {%- if not modules.re.fullmatch('[a-z][a-z0-9_]{0,39}', name | string) or name in taken.columns -%}
        {%- do wrong(where, 'a name has small letters, digits and _, and is none of ' ~ taken.columns | join(', ')) -%}
    {%- endif -%}
    {%- set trouble = 'is a word of SQL' if name in taken.words
        else 'would pass for a column of tokens, masked_…' if name.startswith('masked_') else none -%}
    {%- if trouble -%}
        {%- do wrong(where, name ~ ' ' ~ trouble ~ ': give it another name' ~ (', and say where it is (path: ' ~ name ~ ')' if ', field ' in where)) -%}
    {%- endif -%}
{%- endmacro %}

{# What cannot be a field's name: the boundary's own columns; and what PostgreSQL 15 to 18 do not take for a column
   (pg_get_keywords(), R and T, and the columns that each table has), or, such as user, take for a value of their own. #}
{% macro taken_names() -%}
    {{ return({'columns': (
        'message_id queue load_id sent_at loaded_at event_type reason body body_bytes '
        ~ 'body_and_attributes is_accepted subject mask_key_version create_date logged_in_at'
    ).split(), 'words': (
        'all analyse analyze and any array as asc asymmetric authorization binary both case cast check collate '
        ~ 'collation column concurrently constraint create cross current_catalog current_date current_role '
        ~ 'current_schema current_time current_timestamp current_user default deferrable desc distinct do else end '
        ~ 'except false fetch for foreign freeze from full grant group having ilike in initially inner intersect '
        ~ 'into is isnull join lateral leading left like limit localtime localtimestamp natural not notnull null '
        ~ 'offset on only or order outer overlaps placing primary references returning right select session_user '
        ~ 'similar some symmetric system_user table tablesample then to trailing true union unique user using '
        ~ 'variadic verbose when where window with '
        ~ 'cmax cmin ctid tableoid xmax xmin'
    ).split()}) }}
{%- endmacro %}

{# A list of texts, each in full as this regular expression. YAML has other sorts of values: null, no, 0; and a
   character that PostgreSQL has not. #}
{% macro texts(where, key, list, pattern, wanted) -%}
    {%- set ns = namespace(right=list is sequence and list is not string and list is not mapping) -%}
    {%- for text in (list if ns.right else []) if ns.right -%}
        {%- set ns.right = text is string and '\0' not in text and modules.re.fullmatch(pattern, text) is not none -%}
    {%- endfor -%}
    {%- if not ns.right -%}{%- do wrong(where, key ~ ' is ' ~ wanted) -%}{%- endif -%}
{%- endmacro %}

{# Event types share the boundary's columns: one name, one type. #}
{% macro same_everywhere(where, name, field, columns) -%}
    {%- for column in (['masked_' ~ name, 'token_of_' ~ name, name ~ '_is_placeholder', name] if field.masked_as else [name]) -%}
        {%- set meant = (name, field.type, field.masked_as) -%}
        {%- if columns.get(column, meant) != meant -%}
            {%- do wrong(where, 'the column ' ~ column ~ ' is declared twice, as something else') -%}
        {%- endif -%}
        {%- do columns.update({column: meant}) -%}
    {%- endfor -%}
{%- endmacro %}

{% macro no_path_inside_another(where, fields) -%}
    {%- for one in fields.values() -%}
        {%- for other in fields.values() if other.name != one.name and other.path[:one.path | length] == one.path -%}
            {%- do wrong(where, one.name ~ ' and ' ~ other.name ~ ' are read from the same place, ' ~ one.path | join('.')) -%}
        {%- endfor -%}
    {%- endfor -%}
{%- endmacro %}


{# The fields of all event types, each name once; `events` says which have it, with its path and rules there. It is
   required where all of them require it. #}
{% macro declared_fields(masked) -%}
    {%- set fields = {} -%}
    {%- for event, it in declared_events().items() -%}
        {%- for name, field in it.fields.items() if (field.masked_as is not none) == masked -%}
            {%- if name not in fields -%}{%- do fields.update({name: dict(field, events={})}) -%}{%- endif -%}
            {%- do fields[name].events.update({event: field}) -%}
            {%- do fields[name].update({'required': fields[name].required and field.required}) -%}
        {%- endfor -%}
    {%- endfor -%}
    {{ return(fields.values() | list) }}
{%- endmacro %}


{# What anybody but masker sees of a message, as the boundary and staging have it. #}
{% macro declared_columns() -%}
    {%- set columns = [] -%}
    {%- for field in declared_fields(masked=false) -%}{%- do columns.append(field.name) -%}{%- endfor -%}
    {%- for field in declared_fields(masked=true) -%}
        {%- do columns.extend(['masked_' ~ field.name, field.name ~ '_is_placeholder']) -%}
    {%- endfor -%}
    {{ return(columns) }}
{%- endmacro %}


{% macro quoted_list(values) -%}
    {%- for value in values -%} '{{ value | string | replace("'", "''") }}' {{- ', ' if not loop.last }} {%- endfor -%}
{%- endmacro %}


{# For a mart: how long a text may be, as its column is declared. #}
{% macro longest(event, field) -%}
    {%- set fields = declared_event(event).fields -%}
    {%- if field not in fields -%}
        {%- do wrong('event ' ~ event, 'a model names the field ' ~ field ~ ', which is not declared: take it out there') -%}
    {%- endif -%}
    {{ fields[field].longest }}
{%- endmacro %}


{# For a mart: when the queue received the message, as exactly as its event type shows it. #}
{% macro logged_in_at(event) -%} date_trunc('{{ declared_event(event).shown_to_the }}', sent_at, 'utc') {%- endmacro %}


{% macro declared_event(event) -%}
    {%- set events = declared_events() -%}
    {%- if event not in events -%}
        {%- do wrong('event ' ~ event, 'a model names it, and it is not declared: remove that model') -%}
    {%- endif -%}
    {{ return(events[event]) }}
{%- endmacro %}


{# The columns that a model's YAML promises. #}
{% macro columns_of(model_name) -%}
    {%- set columns = [] -%}
    {%- for node in (graph.nodes.values() if execute else []) if node.resource_type == 'model' and node.name == model_name -%}
        {%- do columns.extend(node.columns) -%}
    {%- endfor -%}
    {{ return(columns) }}
{%- endmacro %}
