{#
  A view that reads raw and the keys with its owner's rights and shows only its own columns.

  Run by a role that may create in its schema (masker, under the target boundary) it is deployed: replaced in place, so
  that what depends on it stays (dbt's own view materialization drops dependants). Run by any other role, it is only
  compared: the view's comment carries a fingerprint of the SQL that was deployed.
#}
{% materialization boundary_view, adapter='postgres' -%}
    {%- set view = this.incorporate(type='view') -%}
    {%- set fingerprint = 'Boundary ' ~ local_md5(sql) -%}

    {{ run_hooks(pre_hooks) }}

    {% if run_query("select has_schema_privilege('" ~ view.schema ~ "', 'create')").columns[0].values()[0] %}
        {% call statement('main') -%}
            create or replace view {{ view }} with (security_barrier = true) as
            {{ get_assert_columns_equivalent(sql) }}
            {{ sql }};
        {%- endcall %}
        {% do apply_grants(view, config.get('grants'), should_revoke=True) %}
        {% do persist_docs(view, model) %}
        {% do run_query("comment on view " ~ view ~ " is " ~ dbt.string_literal(model.description ~ '\n' ~ fingerprint)) %}
    {% else %}
        {% call statement('main', fetch_result=True) -%}
            select coalesce(obj_description(to_regclass('{{ view }}')), '') like '%{{ fingerprint }}'
        {%- endcall %}
        {% if not load_result('main')['data'][0][0] %}
            {% do exceptions.raise_compiler_error(
                view.schema ~ '.' ~ view.identifier ~ ' in the database is not the one in this project: deploy it with `make migrate`.'
            ) %}
        {% endif %}
    {% endif %}

    {{ run_hooks(post_hooks) }}
    {{ adapter.commit() }}
    {{ return({'relations': [view]}) }}
{%- endmaterialization %}
