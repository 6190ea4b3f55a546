{# The token of a canonical value: the same value gives the same token, and nothing leads back. Null stays null. #}
{% macro mask(canonical_value, kind) -%}
    masking.token({{ canonical_value }}, {{ masking_key(kind) }})
{%- endmacro %}


{# The key of a kind: fetched once a query, by the rights of the view's owner. A missing key stops the query. #}
{% macro masking_key(kind) -%}
    (
        select
            case
                when count(*) = 1 then (array_agg(keys.key))[1]
                else masking.fail('masking.keys has no key of kind {{ kind }}, version {{ var("mask_key_version") }}')
            end
        from {{ source('masking', 'keys') }} as keys
        where keys.kind = '{{ kind }}' and keys.version = {{ var('mask_key_version') }}
    )
{%- endmacro %}
