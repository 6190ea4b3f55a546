{# The token of a canonical value: the same value gives the same token, and nothing leads back. Null stays null.
   Keys apply in order, each to the token of the one before (migrations/0003_masking.sql). #}
{% macro masked_here(canonical_value, kind) -%}
    {%- set chain = namespace(token=canonical_value) -%}
    {%- for version in range(1, mask_key_version() + 1) -%}
        {%- set chain.token = 'masking.token(' ~ chain.token ~ ', ' ~ masking_key(kind, version) ~ ')' -%}
    {%- endfor -%}
    {{ chain.token }}
{%- endmacro %}


{# A key: fetched once a query, by the rights of the view's owner. A missing key stops the query. #}
{% macro masking_key(kind, version) -%}
    (
        select
            case
                when count(*) = 1 then (array_agg(keys.key))[1]
                else masking.fail('masking.keys has no key of kind {{ kind }}, version {{ version }}')
            end
        from {{ source('masking', 'keys') }} as keys
        where keys.kind = '{{ kind }}' and keys.version = {{ version }}
    )
{%- endmacro %}


{# The newest key's version. It becomes part of the boundary's SQL, so that after a new key everybody but the migrator
   is told to have the boundary deployed first. #}
{% macro mask_key_version() -%}
    {%- if not execute -%}{{ return(1) }}{%- endif -%}
    {{ return(run_query("select masking.key_version()").columns[0].values()[0] | int) }}
{%- endmacro %}


{# The form that is masked is the form that is compared: by the mask, by the verdict, by the proof. #}
{% macro canonical(text, form) -%} masking.canonical_{{ form }}({{ text }}) {%- endmacro %}


{# Whether a value stands for "none", as its kind declares: it gets a token like others, and nobody counts it. #}
{% macro is_placeholder(field) -%}
    {%- if not field.none -%}{{ return('false') }}{%- endif -%}
    canonical.{{ field.name }} in (
        {%- for value in field.none -%}
            {{ canonical("'" ~ (value | string | replace("'", "''")) ~ "'", field.form) }} {{- ', ' if not loop.last }}
        {%- endfor -%}
    )
{%- endmacro %}


{# Before the boundary is deployed, and by its owner alone: a declared kind without a key gets one. #}
{% macro make_missing_keys() -%}
    {%- if checked_events() and execute and target.name == 'boundary' -%}
        select masking.ensure_keys(array[{{ quoted_list(var('kinds')) }}])
    {%- endif -%}
{%- endmacro %}
